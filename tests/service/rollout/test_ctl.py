"""`python -m service ctl` against an admin plane on loopback: each verb's call, what it prints and how it exits."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from service.admin import FleetParts, create_admin_app
from service.ctl.command import add_arguments, run
from service.revision import RevisionError


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """The words of each line."""
        return [line.split() for line in self.out.splitlines()]


Ctl = Callable[..., Awaitable[Ran]]


class Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def admin_plane(process, credentials=None) -> AsyncIterator[str]:
    metrics = CollectorRegistry()
    app = create_admin_app(
        policies=process.policies,
        backend=process.models,
        metrics_registry=metrics,
        fleet=FleetParts(registry=process.registry, follower=process.follower, rollout=process.rollout),
        credentials=credentials(metrics) if credentials else None,
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none"))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            async with asyncio.timeout(10):
                await serving


@pytest.fixture
async def process(fleet):
    process = fleet.process("a")
    await process.start()
    return process


def call(arguments: tuple[str, ...]) -> int | str | None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    try:
        return run(parser.parse_args(arguments))
    except SystemExit as exited:
        return exited.code


@pytest.fixture
def command(capsys, monkeypatch) -> Ctl:
    """The command line with all its arguments."""
    monkeypatch.delenv("PREMOTOR_TOKEN_FILE", raising=False)

    async def ran(*arguments: str) -> Ran:
        capsys.readouterr()
        status = await asyncio.to_thread(call, arguments)
        assert isinstance(status, int)
        said = capsys.readouterr()
        return Ran(status, said.out, said.err)

    return ran


@pytest.fixture
async def ctl(process, command) -> AsyncIterator[Ctl]:
    """The command line, told where the admin plane is."""
    async with admin_plane(process) as url:
        yield lambda *arguments: command("--admin", url, *arguments)


async def done(ctl: Ctl, *arguments: str) -> Ran:
    ran = await ctl(*arguments)
    assert ran.status == 0, ran
    return ran


async def registered(ctl: Ctl, location: str) -> str:
    """The revision of a checkpoint of the store."""
    ran = await done(ctl, "--json", "register", "tabletop", location)
    return json.loads(ran.out)["revision"]


@pytest.fixture
async def two(fleet, process) -> tuple[str, str]:
    """A revision that serves, and another that is registered."""
    rollout = process.rollout

    async def ended(operation) -> str:
        return (await rollout.ended(operation.operation_id)).revision

    locations = fleet.checkpoint("old", variant="no-prior"), fleet.checkpoint("new", variant="history")
    old, new = [await ended(await rollout.register("tabletop", each, actor="ada")) for each in locations]
    await ended(await rollout.promote("tabletop", old, actor="ada"))
    return old, new


async def status(ctl: Ctl) -> dict:
    return json.loads((await done(ctl, "--json", "policy", "tabletop")).out)


def shares(policy: dict) -> dict[str, float]:
    return {each["revision"]: each["share"] for each in policy["revisions"] if each["share"]}


async def test_nothing_registered_is_said_in_words(ctl):
    assert (await done(ctl, "policies")).out == "no policy is registered\n"


async def test_a_checkpoint_is_registered_and_shown_in_a_table(fleet, ctl):
    ran = await done(ctl, "register", "tabletop", fleet.checkpoint("first", variant="no-prior"))
    (line,) = ran.rows
    assert (line[1:3], line[4]) == (["register", "tabletop"], "succeeded")
    title, head, row = (await done(ctl, "policies")).rows
    assert title == ["tabletop:", "serves", "nothing"]
    assert head == ["revision", "variant", "state", "share", "location", "error"]
    assert row == [line[3], "no-prior", "registered", "first"]
    assert (await done(ctl, "policy", "tabletop")).rows == [title, head, row]


async def test_registering_refuses_another_checkpoint_than_was_named(fleet, ctl):
    ran = await ctl("register", "tabletop", fleet.checkpoint("first"), "--revision", "0" * 12)
    assert ran.status == 1
    assert "000000000000" in ran.out + ran.err


async def test_a_promotion_says_its_steps_on_stderr_and_its_end_on_stdout(fleet, ctl):
    revision = await registered(ctl, fleet.checkpoint("first"))
    ran = await done(ctl, "promote", "tabletop", revision)
    assert "ctl: every gateway routes by it\n" in ran.err
    assert ran.rows[0][1:] == ["promote", "tabletop", revision, "succeeded"]
    assert (await status(ctl))["stable"] == revision
    (_, _, row) = (await done(ctl, "policy", "tabletop")).rows
    assert "100%" in row


async def test_what_a_promotion_keeps_and_guards_is_as_its_flags_say(ctl, two, process):
    old, new = two
    await done(ctl, "promote", "tabletop", new, "--keep-previous", "--max-error-rate", "0.25", "--window-s", "5")
    policy = await status(ctl)
    assert (policy["stable"], policy["previous"]) == (new, old)
    assert (policy["guard"]["max_error_rate"], policy["guard"]["window_s"]) == (0.25, 5.0)
    assert process.registry.revision("tabletop", old).state == "ready"


async def test_another_schema_than_what_serves_has_needs_a_flag(fleet, ctl, two):
    old, _ = two
    other = await registered(ctl, fleet.checkpoint("other", config={"execution_horizon": 4}))
    for change in (("split", "tabletop", f"{other}=0.5"), ("promote", "tabletop", other)):
        refused = await ctl(*change)
        assert refused.status == 1 and f"{old}, which serves, has" in refused.err
        await done(ctl, *change, "--allow-schema-change")
    assert (await status(ctl))["stable"] == other


async def test_a_split_gives_shares_and_a_drain_takes_them_back(ctl, two):
    old, new = two
    await done(ctl, "split", "tabletop", f"{new}=0.25", "--min-requests", "7")
    policy = await status(ctl)
    assert (shares(policy), policy["guard"]["min_requests"]) == ({old: 0.75, new: 0.25}, 7)
    assert (await done(ctl, "policies")).rows[-1][:4] == [new, "history", "serving", "25%"]
    ran = await done(ctl, "drain", "tabletop", new)
    assert ran.rows[0][1:] == ["drain", "tabletop", new, "succeeded"]
    assert shares(await status(ctl)) == {old: 1.0}


async def test_rolling_back_ends_a_split_and_its_reason_is_kept(ctl, two):
    old, new = two
    await done(ctl, "split", "tabletop", f"{new}=0.5")
    ran = await done(ctl, "rollback", "tabletop", "--reason", "it shakes")
    assert ran.rows[0][1:] == ["roll", "back", "tabletop", old, "succeeded"]
    assert shares(await status(ctl)) == {old: 1.0}
    entries = json.loads((await done(ctl, "--json", "audit", "--policy", "tabletop")).out)["entries"]
    (entry,) = [entry for entry in entries if entry["action"] == "roll back"]
    assert "it shakes" in json.dumps(entry["detail"])


async def test_a_shadow_is_set_shown_and_ended(ctl, two):
    _, new = two
    await done(ctl, "shadow", "tabletop", new, "0.5")
    assert (await done(ctl, "policy", "tabletop")).rows[0][-3:] == ["shadow", new, "(50%)"]
    await done(ctl, "shadow", "tabletop", new, "0")
    assert (await status(ctl))["shadow"] is None


async def test_an_observation_map_is_set_from_a_file_and_taken_away(ctl, two, tmp_path):
    file = tmp_path / "map.json"
    observation_map = {"policy": "tabletop", "embodiment": "sawyer", "images": {"corner": "eye"}, "state": ["all"]}
    for kept in (observation_map, {}):
        file.write_text(json.dumps(kept))
        await done(ctl, "observation-map", "tabletop", str(file))
        assert (await status(ctl))["observation_map"] == kept
    assert (await ctl("observation-map", "tabletop", str(tmp_path / "none.json"))).status == 2


async def test_a_guard_is_set_by_flags_and_ended_without_any(ctl, two):
    await done(ctl, "guard", "tabletop", "--max-latency-p95-s", "0.2", "--max-violation-rate", "0.1")
    guard = (await status(ctl))["guard"]
    assert (guard["max_latency_p95_s"], guard["max_violation_rate"], guard["max_error_rate"]) == (0.2, 0.1, None)
    await done(ctl, "guard", "tabletop")
    guard = (await status(ctl))["guard"]
    assert (guard["max_latency_p95_s"], guard["max_violation_rate"]) == (None, None)


async def test_a_revision_is_loaded_unloaded_and_forgotten(ctl, two, process):
    old, new = two
    assert (await done(ctl, "load", "tabletop", new)).rows[0][1:] == ["load", "tabletop", new, "succeeded"]
    assert new in process.models.loaded
    assert (await done(ctl, "unload", "tabletop", new)).rows[0][1:] == ["unload", "tabletop", new, "succeeded"]
    await process.until(lambda: process.registry.revision("tabletop", new).state == "unloaded")
    assert (await done(ctl, "delete", "tabletop", new)).out == ""
    assert [each["revision"] for each in (await status(ctl))["revisions"]] == [old]


async def test_operations_and_the_audit_log_come_as_tables_of_one_policy(ctl, two):
    old, new = two
    head, *rows = (await done(ctl, "operations", "--policy", "tabletop")).rows
    assert head == ["operation", "kind", "policy", "revision", "actor", "state", "error"]
    assert [row[1:4] for row in rows] == [
        ["promote", "tabletop", old],
        ["register", "tabletop", new],
        ["register", "tabletop", old],
    ]
    assert len((await done(ctl, "operations", "--limit", "1")).rows) == 2
    assert len((await done(ctl, "operations", "--policy", "other")).rows) == 1
    head, *rows = (await done(ctl, "audit", "--limit", "3")).rows
    assert head[:4] == ["number", "at", "actor", "action"]
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), key=int, reverse=True)
    assert len(rows) == 3


async def test_gateways_are_listed_and_a_dead_one_is_removed(ctl, process):
    process.registry.beat("dead", address="elsewhere:1", generation=0, placements=[])
    head, *rows = (await done(ctl, "gateways")).rows
    assert head == ["gateway", "address", "generation", "started", "at"]
    assert [row[0] for row in rows] == ["a", "dead"]
    assert (await done(ctl, "remove-gateway", "dead")).out == ""
    assert [row[0] for row in (await done(ctl, "gateways")).rows[1:]] == ["a"]


async def test_an_operation_that_fails_exits_1_with_its_reason(ctl, two, process):
    old, new = two
    process.models.refusals[new] = RevisionError("probe.npz: a chunk is off by 3")
    ran = await ctl("promote", "tabletop", new)
    assert ran.status == 1
    assert ran.out.endswith(f"promote tabletop {new} failed probe.npz: a chunk is off by 3\n")
    assert (await status(ctl))["stable"] == old


REFUSED = {
    "policy tabeltop": "nearest name is 'tabletop'",
    "load tabletop 000000000000": "is not loaded",
    "load tabletop xyz": "revision: String should match pattern",
    "register tabletop ../etc": "plain path inside the store",
    "shadow tabletop 000000000000 2": "share: Input should be less than or equal to 1",
    "follow nothing": "there is no operation",
    "audit --limit 0": "limit: Input should be greater than or equal to 1",
}


async def test_a_refused_call_exits_1_with_the_server_s_message(ctl, two):
    for arguments, message in REFUSED.items():
        ran = await ctl(*arguments.split())
        assert (ran.status, ran.out) == (1, ""), arguments
        assert ran.err.startswith("ctl: ")
        assert message in ran.err, arguments


async def test_json_prints_what_was_answered_and_nothing_else(ctl, two):
    old, _ = two
    answer = json.loads((await done(ctl, "--json", "policies")).out)
    assert answer["policies"][0]["stable"] == old
    promoted = json.loads((await done(ctl, "--json", "promote", "tabletop", old)).out)
    assert (promoted["kind"], promoted["state"]) == ("promote", "succeeded")


async def test_json_of_a_failed_operation_exits_1(ctl, two, process):
    _, new = two
    process.models.refusals[new] = RevisionError("the weights are NaN")
    ran = await ctl("--json", "load", "tabletop", new)
    assert (ran.status, json.loads(ran.out)["error"]) == (1, "the weights are NaN")


async def test_no_wait_leaves_an_operation_running_which_follow_ends(ctl, two, process):
    _, new = two
    process.models.holds[new] = asyncio.Event()
    ran = await done(ctl, "load", "tabletop", new, "--no-wait")
    operation = ran.rows[0][0].removesuffix(":")
    assert ran.rows[0][1:] == ["load", "tabletop", new, "running"]
    assert (await done(ctl, "follow", operation, "--no-wait")).rows == ran.rows
    process.models.holds[new].set()
    followed = await done(ctl, "follow", operation)
    assert followed.rows == [[f"{operation}:", "load", "tabletop", new, "succeeded"]]


async def test_an_operation_is_cancelled_by_its_name(ctl, two, process):
    old, new = two
    process.models.holds[new] = asyncio.Event()
    operation = (await done(ctl, "promote", "tabletop", new, "--no-wait")).rows[0][0].removesuffix(":")
    ran = await done(ctl, "cancel", operation)
    assert (ran.out, ran.err) == ("", "ctl: promote of tabletop is cancelled\n")
    again = await ctl("cancel", operation)
    assert again.status == 1 and "has failed" in again.err
    assert (await status(ctl))["stable"] == old


async def test_a_probe_that_fails_exits_1_and_says_where(ctl, two):
    # The probe of these checkpoints holds nothing that could be read.
    old, new = two
    ran = await ctl("probe", "tabletop", old)
    assert ran.status == 1
    assert "gateway a: probe.npz cannot be read" in ran.out
    ran = await ctl("probe", "tabletop", new)
    assert ran.status == 1 and "expected it to be ready or serving" in ran.out


async def test_a_policy_is_retired_and_deleted(ctl, two, process):
    old, _ = two
    refused = await ctl("delete-policy", "tabletop")
    assert refused.status == 1 and "expected it to be retired first" in refused.err
    assert (await done(ctl, "retire", "tabletop")).rows[0][1:] == ["retire", "tabletop", old, "succeeded"]
    assert (await done(ctl, "policy", "tabletop")).rows[0] == ["tabletop:", "serves", "nothing"]
    await process.until(lambda: process.registry.revision("tabletop", old).state == "unloaded")
    assert (await done(ctl, "delete-policy", "tabletop")).out == ""
    assert (await done(ctl, "policies")).out == "no policy is registered\n"
    said = [row[3:5] for row in (await done(ctl, "audit", "--policy", "tabletop")).rows[1:]]
    assert said[0] == ["delete", "policy"] and ["retire", "tabletop"] in said


async def test_placements_come_as_a_table(ctl, two):
    old, _ = two
    head, *rows = (await done(ctl, "placements", "tabletop", old)).rows
    assert head == ["gateway", "state", "num", "in", "progress", "error"]
    assert rows == [["a", "ready", "0"]]


async def test_tokens_are_made_listed_rotated_and_ended_and_their_secrets_are_shown_once(process, command, tmp_path):
    file = tmp_path / "token"
    async with admin_plane(process) as url:
        first = ("--name", "night-shift", "--scope", "admin", "--scope", "observe")
        file.write_text((await done(command, "--admin", url, "create-token", *first)).out)

        async def ran(*arguments: str) -> Ran:
            return await done(command, "--admin", url, "--token-file", str(file), *arguments)

        scopes = ("--scope", "infer", "--scope", "observe")
        made = await ran("create-token", "--name", "arm-7", *scopes, "--expires-in-days", "1")
        assert made.out.startswith("pm_")
        token_id = made.out.split("_")[1]
        head, _, row = (await ran("tokens")).rows
        assert head[:4] == ["token", "id", "name", "scopes"]
        assert row[:3] == [token_id, "arm-7", "infer,observe"]
        assert made.out.strip() not in (await ran("--json", "tokens")).out
        rotated = await ran("rotate-token", token_id, "--grace-s", "1")
        assert rotated.out != made.out and rotated.out.split("_")[1] == token_id
        assert (await ran("revoke-token", token_id)).rows[1][:2] == [token_id, "arm-7"]
    said = [(entry.action, entry.actor.split()[0]) for entry in process.registry.audit(most=3)]
    assert said == [(f"{verb}-token", "night-shift") for verb in ("revoke", "rotate", "create")]


@pytest.mark.parametrize("days", ["0", "-1", "1e9", "much"])
async def test_a_token_that_could_not_expire_then_exits_2_and_asks_nobody(command, days):
    ran = await command("create-token", "--name", "ada", "--scope", "infer", "--expires-in-days", days)
    assert (ran.status, ran.out) == (2, "")


@pytest.mark.parametrize("share", ["0123456789ab", "0123456789ab=much", "0123456789ab="])
async def test_a_share_that_does_not_parse_exits_2_and_asks_nobody(command, share):
    ran = await command("split", "tabletop", share)
    assert (ran.status, ran.out) == (2, "")
    assert "is not REVISION=SHARE" in ran.err


async def test_a_token_file_is_sent_and_its_name_goes_into_the_log(
    fleet, process, desk, command, tmp_path, monkeypatch
):
    file = tmp_path / "token"
    file.write_text(desk.give("admin", "observe", name="night-shift") + "\n")
    async with admin_plane(process, desk.credentials) as url:
        without = await command("--admin", url, "policies")
        assert (without.status, without.out) == (1, "")
        assert "credential" in without.err or "token" in without.err
        location = fleet.checkpoint("first")
        await done(command, "--admin", url, "--token-file", str(file), "register", "tabletop", location)
        monkeypatch.setenv("PREMOTOR_TOKEN_FILE", str(file))
        audit = await done(command, "--admin", url, "audit")
    assert "night-shift" in audit.out


async def test_a_token_file_that_is_missing_exits_1(command, tmp_path):
    ran = await command("--token-file", str(tmp_path / "none"), "policies")
    assert ran.status == 1
    assert "No such file" in ran.err


async def test_an_admin_plane_that_is_not_there_is_said_so(command):
    with socket.socket() as unused:
        # Bound and not listening: nobody else takes the port, and nobody answers on it.
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        ran = await command("--admin", url, "policies")
    assert (ran.status, ran.out) == (1, "")
    assert url in ran.err and "ConnectError" in ran.err

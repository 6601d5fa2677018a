"""A checkpoint directory is served whole and unchanged, or refused with the file at fault named."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path

import pytest

from premotor.v1 import policy_pb2
from service.episodes import Episode
from service.errors import UnknownPolicyError, UnknownRevisionError
from service.policies import ServedPolicies
from service.revision import RevisionError, load_revision, read_revision

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints" / "tabletop"


@pytest.fixture
def checkpoint(kit, tmp_path: Path) -> Path:
    return kit.write_checkpoint(tmp_path / "checkpoint")


def rewrite_json(checkpoint: Path, name: str, change) -> None:
    """Changes a JSON file and makes the manifest agree with it."""
    content = json.loads((checkpoint / name).read_text())
    change(content)
    data = json.dumps(content).encode()
    (checkpoint / name).write_bytes(data)
    if name != "manifest.json":
        entry = {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}
        rewrite_json(checkpoint, "manifest.json", lambda manifest: manifest["files"].update({name: entry}))


def test_the_revision_is_the_first_12_hex_digits_of_the_manifests_sha256(checkpoint):
    revision = read_revision(checkpoint, policy="tabletop")
    assert revision.revision == hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest()[:12]


def test_the_description_says_what_config_and_embodiments_say(kit, checkpoint):
    description = read_revision(checkpoint, policy="tabletop").description
    assert (description.name, description.variant) == ("tabletop", "history")
    assert (description.action_horizon, description.execution_horizon, description.history_steps) == (16, 8, 8)
    assert (description.num_inference_steps, description.max_inference_steps) == (5, 32)
    assert [embodiment.name for embodiment in description.embodiments] == ["sawyer", "panda"]
    for embodiment, spec in zip(description.embodiments, (kit.sawyer, kit.panda), strict=True):
        assert [camera.name for camera in embodiment.cameras] == list(spec.camera_names)
        assert sum(group.dim for group in embodiment.state) == spec.state_dim
        assert sum(group.dim for group in embodiment.action) == spec.action_dim
        assert embodiment.control_rate_hz == spec.control_rate_hz
    assert list(description.embodiments[0].action[0].lower_limit) == [-1.0, -1.0, -1.0]
    assert description.embodiments[0].state[0].unit == "m"


def test_every_revision_has_guidance_and_those_trained_for_a_delay_have_prefix(kit, tmp_path):
    def described(name: str, **config):
        directory = kit.write_checkpoint(tmp_path / name, config=config)
        return read_revision(directory, policy="tabletop").description

    plain, trained = described("plain"), described("trained", max_inference_delay=4)
    methods = policy_pb2.RealTimeChunking
    assert (list(plain.real_time_chunking_methods), plain.max_inference_delay) == ([methods.METHOD_GUIDANCE], 0)
    assert list(trained.real_time_chunking_methods) == [methods.METHOD_GUIDANCE, methods.METHOD_PREFIX]
    assert trained.max_inference_delay == 4


def test_a_delay_as_long_as_the_chunk_is_refused(kit, tmp_path):
    directory = kit.write_checkpoint(tmp_path / "checkpoint", config={"max_inference_delay": 16})
    with pytest.raises(RevisionError, match="max_inference_delay 16 leaves nothing of action_horizon 16"):
        read_revision(directory, policy="tabletop")


def test_the_schema_digest_ignores_revision_and_variant_and_sees_everything_else(kit, tmp_path):
    def digest(name: str, **changes) -> str:
        return read_revision(
            kit.write_checkpoint(tmp_path / name, **changes), policy="tabletop"
        ).description.schema_digest

    first = digest("first")
    assert len(first) == 64
    assert digest("other-variant", variant="no-prior") == first
    assert digest("other-horizon", config={"execution_horizon": 4}) != first
    assert digest("trained-for-no-delay", config={"max_inference_delay": 0}) == first
    assert digest("trained-for-a-delay", config={"max_inference_delay": 4}) != first


def test_the_shipped_policy_is_to_its_robots_what_it_was():
    """Says no more than that: a retrained checkpoint keeps the digest, one for other bodies or chunks gets another."""
    description = read_revision(SHIPPED, policy="tabletop").description
    assert description.schema_digest == "4d5e9f5baf7905324ecb3d492839a0ca047bd2fcaf1f3798b314bd3b7e8a7432"


def test_the_shipped_policy_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= 25_000_000
    manifest = json.loads((SHIPPED / "manifest.json").read_text())
    assert manifest["num_parameters"] <= 12_000_000
    # In fp32, so that the manifest cannot say less than there is.
    assert manifest["files"]["model.safetensors"]["num_bytes"] <= 4 * manifest["num_parameters"] + 100_000


def test_a_step_limit_is_published_and_changes_what_a_robot_relies_on(checkpoint):
    before = read_revision(checkpoint, policy="tabletop").description
    assert not any(group.step_limit for body in before.embodiments for group in body.action)
    rewrite_json(
        checkpoint,
        "embodiments.json",
        lambda content: content["embodiments"][0]["spec"]["action"][0].update(step_limit=[0.1, 0.2, 0.3]),
    )
    after = read_revision(checkpoint, policy="tabletop").description
    assert list(after.embodiments[0].action[0].step_limit) == [0.1, 0.2, 0.3]
    assert after.schema_digest != before.schema_digest


def test_a_flipped_byte_is_refused_by_name(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"weightz")
    with pytest.raises(RevisionError, match=r"model\.safetensors has changed"):
        read_revision(checkpoint, policy="tabletop")


def test_a_file_of_another_length_is_refused_with_both_lengths(checkpoint):
    (checkpoint / "probe.npz").write_bytes(b"probe and more")
    with pytest.raises(RevisionError, match=r"probe\.npz has 14 bytes, its manifest\.json says 5"):
        read_revision(checkpoint, policy="tabletop")


@pytest.mark.parametrize(
    "name", ["manifest.json", "config.json", "embodiments.json", "model.safetensors", "tokenizer/tokenizer.json"]
)
def test_a_missing_file_is_refused_by_name(checkpoint, name):
    (checkpoint / name).unlink()
    with pytest.raises(RevisionError, match=f"{name} is missing"):
        read_revision(checkpoint, policy="tabletop")


def test_a_manifest_that_leaves_out_the_weights_is_refused(checkpoint):
    rewrite_json(checkpoint, "manifest.json", lambda manifest: manifest["files"].pop("model.safetensors"))
    with pytest.raises(RevisionError, match=r"does not list model\.safetensors"):
        read_revision(checkpoint, policy="tabletop")


def test_an_unlisted_file_is_refused(checkpoint):
    (checkpoint / "tokenizer" / "extra.py").write_text("")
    with pytest.raises(RevisionError, match=r"tokenizer/extra\.py is in the checkpoint but not in its manifest"):
        read_revision(checkpoint, policy="tabletop")


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json", "tokenizer"])
def test_a_symbolic_link_is_refused_even_to_the_right_content(checkpoint, tmp_path, name):
    (checkpoint / name).rename(tmp_path / "elsewhere")
    (checkpoint / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RevisionError, match=name):
        read_revision(checkpoint, policy="tabletop")


def test_a_checkpoint_reached_through_a_link_is_read_where_it_lies(checkpoint, tmp_path):
    (tmp_path / "current").symlink_to(checkpoint)
    assert read_revision(tmp_path / "current", policy="tabletop").directory == Path(os.path.realpath(checkpoint))


def test_a_named_pipe_is_refused_and_not_read(checkpoint):
    os.mkfifo(checkpoint / "pipe")
    with pytest.raises(RevisionError, match="pipe is a special file"):
        read_revision(checkpoint, policy="tabletop")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "./config.json", "a//b", "manifest.json"])
def test_a_listed_path_that_is_not_plainly_inside_is_refused(checkpoint, name):
    entry = {"sha256": "0" * 64, "num_bytes": 0}
    rewrite_json(checkpoint, "manifest.json", lambda manifest: manifest["files"].update({name: entry}))
    with pytest.raises(RevisionError, match="lists"):
        read_revision(checkpoint, policy="tabletop")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("action_horizon", 0),
        ("execution_horizon", 17),
        ("history_steps", -1),
        ("num_inference_steps", 33),
        ("max_inference_steps", "32"),
        ("format_version", 2),
    ],
)
def test_a_config_that_cannot_be_names_file_and_field(kit, tmp_path, field, value):
    checkpoint = kit.write_checkpoint(tmp_path / "checkpoint", config={field: value})
    with pytest.raises(RevisionError, match=rf"config\.json does not fit its format: .*{field}"):
        read_revision(checkpoint, policy="tabletop")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["embodiments"].clear(),
        lambda content: content["embodiments"].append(content["embodiments"][0]),
        lambda content: content["embodiments"][0]["spec"].update(control_rate_hz=0),
        lambda content: content["embodiments"][0]["spec"]["action"][0].update(lower_limit=[0.0]),
        lambda content: content["embodiments"][0]["spec"]["action"][0].update(step_limit=[0.1]),
        lambda content: content["embodiments"][0]["spec"]["action"][0].update(step_limit=[0.1, 0.1, -0.1]),
        lambda content: content["embodiments"][0]["spec"]["state"][0].update(step_limit=[0.1] * 3),
        lambda content: content["embodiments"][0]["spec"]["action"][0].update(
            step_limit=[0.1] * 3, representation="delta"
        ),
        lambda content: content["embodiments"][1]["spec"]["cameras"][1].update(name="front"),
    ],
)
def test_embodiments_that_cannot_be_are_refused(checkpoint, change):
    rewrite_json(checkpoint, "embodiments.json", change)
    with pytest.raises(RevisionError, match=r"embodiments\.json does not fit its format"):
        read_revision(checkpoint, policy="tabletop")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b'{"format_version": NaN}', b'{"a": 1, "a": 2}', b"\xff"]
)
def test_a_manifest_that_is_not_json_is_refused(checkpoint, content):
    (checkpoint / "manifest.json").write_bytes(content)
    with pytest.raises(RevisionError, match=r"manifest\.json is not JSON"):
        read_revision(checkpoint, policy="tabletop")


def test_what_is_not_a_directory_is_refused(tmp_path):
    with pytest.raises(RevisionError, match="not a directory"):
        read_revision(tmp_path / "nothing", policy="tabletop")


def test_loading_in_a_thread_gives_the_same_revision(checkpoint):
    assert asyncio.run(load_revision(checkpoint, policy="tabletop")) == read_revision(checkpoint, policy="tabletop")


def test_the_first_revision_serves_and_every_listed_one_can_be_pinned(kit, tmp_path):
    first = kit.revision
    second = read_revision(kit.write_checkpoint(tmp_path / "second", variant="no-prior"), policy="tabletop")
    policies = ServedPolicies.fixed({"tabletop": [first, second]})
    assert policies.serving("tabletop") is first
    episode = Episode(policy="tabletop", robot_id="robot", episode_id="1")
    assert policies.pinned(episode, second.revision) is second
    with pytest.raises(UnknownRevisionError, match=first.revision):
        policies.pinned(episode, "0" * 12)
    with pytest.raises(UnknownPolicyError, match="the nearest name is 'tabletop'"):
        policies.serving("table-top")


def test_a_policy_without_revisions_or_under_another_name_is_refused(kit):
    with pytest.raises(ValueError, match="at least one"):
        ServedPolicies.fixed({"tabletop": []})
    with pytest.raises(ValueError, match="listed under 'other'"):
        ServedPolicies.fixed({"other": [kit.revision]})
    with pytest.raises(ValueError, match="twice"):
        ServedPolicies.fixed({"tabletop": [kit.revision, kit.revision]})

"""Alert rules and the Grafana dashboard ask for metrics that a real service has, in PromQL that parses.

A parser that knows PromQL's grammar, functions and types reads every expression.
"""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from premotor.v1 import policy_pb2_grpc
from service.bench.against import TRITON_COUNTERS
from service.bench.requests import chunk_requests
from service.bench.served import POLICY, served
from service.gateway.shadow import DIVERGENCE_LIMIT, FAILURE_LIMIT
from service.model_settings import ModelSettings
from service.probe import read_probe
from service.revision import read_revision

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yaml"
DASHBOARD = DEPLOY / "grafana" / "premotor.json"
# Which Prometheus has by itself.
SYNTHETIC = {"up"}
# Which a scrape adds, which histograms have, and which are first seen when a chunk breaks a limit or is copied.
LABELS = {"job", "instance", "le", "group", "outcome"}
TIMEOUT_S = 30.0


class Exposition:
    """Names and labels of all that a service exposes."""

    def __init__(self, texts: list[str]) -> None:
        self.names: set[str] = set()
        self.labels = set(LABELS)
        for text in texts:
            for family in text_string_to_metric_families(text):
                suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}.get(family.type, ("",))
                self.names |= {family.name + suffix for suffix in suffixes}
                self.labels |= {label for sample in family.samples for label in sample.labels}
            # As they are written: the parser gives Triton's counters a suffix that they do not have.
            self.names |= set(re.findall(r"^([a-z_]\w*)[{ ]", text, re.MULTILINE))


def faults(expression: str, exposition: Exposition) -> list[str]:
    """What of an expression is no PromQL, or asks for what nobody exposes."""
    try:
        parsed = promql_parser.parse(expression.replace("$__rate_interval", "1m"))
    except ValueError as error:
        return [f"no PromQL: {error}"]
    found: list[str] = []

    def check(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            if node.name not in exposition.names | SYNTHETIC:
                found.append(f"no metric {node.name}")
            labels = [matcher.name for matcher in node.matchers.matchers]
        elif isinstance(node, promql_parser.AggregateExpr):
            labels = node.modifier.labels if node.modifier is not None else []
        elif isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None:
            labels = node.modifier.matching.labels if node.modifier.matching is not None else []
        else:
            return
        found.extend(f"no label {label}" for label in labels if label not in exposition.labels)

    promql_parser.walk(parsed, check)
    return found


@pytest.fixture(scope="module")
def exposition(toy_checkpoint: Path) -> Iterator[Exposition]:
    """Of a service with Triton that has answered, and refused, a request."""
    revision = read_revision(toy_checkpoint, policy=POLICY)
    (request, *_) = chunk_requests(revision, read_probe(revision)[0], policy=POLICY)
    with served(toy_checkpoint, ModelSettings()) as service, grpc.insecure_channel(service.grpc_address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        stub.PredictChunk(request, timeout=TIMEOUT_S)
        request.seed = -1
        with pytest.raises(grpc.RpcError):
            stub.PredictChunk(request, timeout=TIMEOUT_S)
        texts = []
        for path in ("/metrics", "/metrics/triton"):
            with urllib.request.urlopen(service.admin_url + path, timeout=TIMEOUT_S) as answer:
                texts.append(answer.read().decode())
    yield Exposition(texts)


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def expressions_of_the_dashboard() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    found += [each["expr"] for each in dashboard["annotations"]["list"]]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            # label_values(metric, label)
            metric, _, label = variable["definition"].removeprefix("label_values(").removesuffix(")").rpartition(", ")
            found.append(f"max by ({label}) ({metric})")
    return found


def test_every_alert_asks_for_what_a_service_exposes(exposition) -> None:
    assert {rule["alert"]: faults(rule["expr"], exposition) for rule in rules()} == {
        rule["alert"]: [] for rule in rules()
    }


def test_every_panel_asks_for_what_a_service_exposes(exposition) -> None:
    found = {expression: faults(expression, exposition) for expression in expressions_of_the_dashboard()}
    assert {expression: fault for expression, fault in found.items() if fault} == {}
    assert len(found) > 30


def test_the_counters_of_triton_that_a_bench_reads_are_there(exposition) -> None:
    assert {*TRITON_COUNTERS} <= exposition.names


def test_every_metric_of_ours_has_a_unit_or_says_what_it_counts(exposition) -> None:
    """Prometheus' rule: the unit is the name's last word, before the suffixes of counters and histograms."""
    units = ("seconds", "requests", "chunks", "calls", "violations", "underruns", "ratio", "divergence")
    facts = {
        "premotor_requests_in_flight", "premotor_requests_queued", "premotor_episodes_in_progress",
        "premotor_policy_ready", "premotor_registry_reachable", "premotor_fleet_generation",
    }  # fmt: skip
    ours = {
        re.sub(r"_(total|bucket|sum|count|created)$", "", name)
        for name in exposition.names
        if name.startswith("premotor_")
    }
    assert {name for name in ours - facts if not name.endswith(units)} == set()
    assert facts <= ours and len(ours) > 15


def test_alerts_have_a_name_a_severity_and_words_for_whoever_is_woken() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) and all(re.fullmatch(r"Premotor[A-Za-z]+", name) for name in names)
    for rule in rules():
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
        for text in rule["annotations"].values():
            for label in re.findall(r"\$labels\.(\w+)", text):
                assert label in rule["expr"] or label in ("instance", "policy"), rule["alert"]


def test_what_must_be_watched_is_watched() -> None:
    watched = " ".join(rule["expr"] for rule in rules())
    for metric in (
        "up", "premotor_policy_ready", "premotor_requests_total", "premotor_output_violations_total",
        "premotor_total_seconds_bucket", 'reason="OVERLOADED"', "premotor_registry_reachable",
        "premotor_shadow_divergence_ratio > 1", "premotor_underruns_total", "failed|invalid|other_schema",
    ):  # fmt: skip
        assert metric in watched


def test_the_rules_on_shadows_have_the_limits_of_the_events_in_the_log() -> None:
    limits = {
        rule["alert"]: float(re.findall(r"> ([\d.]+)(?: and|$)", rule["expr"])[0])
        for rule in rules()
        if "Shadow" in rule["alert"]
    }
    assert limits == {"PremotorShadowDiverges": DIVERGENCE_LIMIT, "PremotorShadowFails": FAILURE_LIMIT}


def test_errors_and_latency_are_drawn_by_revision() -> None:
    """What a guard rolls back by is to be seen before it does, of the canary and of the stable one."""
    drawn = [target["expr"] for panel in panels() for target in panel["targets"]]
    by_revision = [expression for expression in drawn if "sum by (policy, revision" in expression]
    assert any("premotor_total_seconds_bucket" in expression for expression in by_revision)
    for outcome in ("failed", "violation"):
        assert any(f'outcome="{outcome}"' in expression for expression in by_revision)


def test_panels_lie_beside_each_other_and_have_titles_of_their_own() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    titles = [panel["title"] for panel in panels()]
    assert len(titles) == len(set(titles))
    sources = {json.dumps(target["datasource"]) for panel in panels() for target in panel["targets"]}
    assert sources == {'{"type": "prometheus", "uid": "${datasource}"}'}


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("premotor_nothing > 0", "no metric premotor_nothing"),
        ("rate(premotor_total_seconds[5m])", "no metric premotor_total_seconds"),
        ("sum by (colour) (up)", "no label colour"),
        ("up * on (colour) up", "no label colour"),
        ('up{colour="red"}', "no label colour"),
        ("up{job~'x'}", "no PromQL"),
        ("sum(rate(up[5m])", "no PromQL"),
        ("ratte(up[5m])", "no PromQL"),
        ("rate(up)", "no PromQL"),
        ("sum by (job) up > > 0", "no PromQL"),
    ],
)
def test_an_expression_that_is_wrong_is_found_out(expression: str, fault: str) -> None:
    exposition = Exposition(["# TYPE premotor_total_seconds histogram\npremotor_total_seconds_sum 1\n"])
    assert any(found.startswith(fault) for found in faults(expression, exposition))

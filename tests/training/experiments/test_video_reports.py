"""From probes and tests to words: the control first, verdicts by interval, paper B beside, paper A's pages alone."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.experiments.fake_video_work import FakeVideoWork, video_store_of
from tests.training.experiments.fake_work import store_of
from training.__main__ import main
from training.experiments.budget import Budget
from training.experiments.definitions.catalogue import experiment
from training.experiments.experiment import EULER_STEPS
from training.experiments.report import write_reports
from training.experiments.results import collect as collect_prior
from training.experiments.results import write_results as write_prior
from training.experiments.summary import format_summary
from training.experiments.verdict import HOLDS, NOT_RUN, NOT_SHOWN
from training.experiments.video.budget import VideoBudget
from training.experiments.video.definitions.catalogue import VIDEO_EXPERIMENTS
from training.experiments.video.plan import plan
from training.experiments.video.report import format_pilot, format_report, format_section
from training.experiments.video.results import collect, write_results
from training.experiments.video.runner import carry_out
from training.video_prior.recipe import VideoPriorRecipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/ of the four, decoupling of one seed of two; beside one of paper A's."""
    root = tmp_path_factory.mktemp("video")
    budget = replace(VideoBudget.load("cpu"), episodes=3, seeds=(0, 1))
    store = video_store_of(budget, root / "experiments")
    for each in VIDEO_EXPERIMENTS.values():
        seeds = (0,) if each.name == "decoupling" else (0, 1)
        with ThreadPoolExecutor(1) as executor:
            carry_out(plan([each], store, seeds), store, FakeVideoWork(), executor, num_workers=1)
        write_results(each, collect(each, store, (0, 1)), root / "results", store, (0, 1))
    prior = store_of(Budget.load("cpu"), root / "prior")
    each = experiment("decay")
    write_prior(each, collect_prior(each, prior, (0,)), root / "results", prior, (0,))
    write_reports(root / "results")
    return root


def values(root: Path, name: str) -> dict:
    return json.loads((root / "results" / name / "results.json").read_text())


def claim(root: Path, name: str, words: str) -> dict:
    (found,) = [each for each in values(root, name)["claims"] if words in each["claim"]]
    return found


@pytest.mark.parametrize("name", list(VIDEO_EXPERIMENTS))
def test_each_leaves_results_recipes_report_and_figures(name: str, finished: Path) -> None:
    directory = finished / "results" / name
    assert len(list((directory / "recipes").glob("*.json"))) == len(values(finished, name)["arms"])
    report = (directory / "report.md").read_text()
    assert "![" in report and f"`python -m training experiment {name}`" in report
    assert (directory / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (directory / "plot.svg").read_text()
    for each in VIDEO_EXPERIMENTS[name].claims:
        assert each.claim in report


def test_recipes_of_policies_can_be_trained_again(finished: Path) -> None:
    for path in (finished / "results/adaptation/recipes").glob("*.json"):
        VideoPriorRecipe.from_json(json.loads(path.read_text()))


def test_the_control_stands_before_every_claim_about_video(finished: Path) -> None:
    text = (finished / "RESULTS.md").read_text()
    section = text[text.index("## Priors from video") :]
    assert "The control, no pretraining: " in section
    assert section.index("The control, no pretraining") < section.index("| claim |")
    first = next(line for line in section.splitlines() if line.startswith("| ["))
    assert "latent pretraining helps the same head at 10 demonstrations" in first


def test_every_claim_about_video_stands_in_the_summary_beside_paper_b(finished: Path) -> None:
    text = (finished / "RESULTS.md").read_text()
    for each in VIDEO_EXPERIMENTS.values():
        for known in each.claims:
            assert f"| {known.claim} |" in text
    assert "+4.9 points" in text and "paper B 0.914" in text
    assert "+15.3 points" in text
    # B less UniVLA, another model: beside the table, and of no claim here.
    assert "0.8659 +- 0.0064 of UniVLA" in text and "+0.048" not in text and "paper B 0.866" not in text
    section = text[text.index("### decoupling") :]
    assert "**Little room.**" in section and "Paper B: On RoboTwin 67.7 in full" in section
    assert "some intervals exclude no effect by chance" in text[text.index("## Priors from video") :]


def test_paper_a_s_part_of_the_summary_is_as_without_video(finished: Path) -> None:
    text = (finished / "RESULTS.md").read_text()
    assert text.startswith(format_summary([values(finished, "decay")]) + "\n## Priors from video")
    assert format_section([]) == ""


def test_verdicts_of_figures_follow_intervals_and_bounds(finished: Path) -> None:
    better = claim(finished, "latent-quality", "motion by 0.5 of R2 better")
    assert better["verdict"] == HOLDS and better["estimate"]["value"] == pytest.approx(0.8)
    assert claim(finished, "latent-quality", "without masks, too")["verdict"] == "the opposite"
    assert claim(finished, "latent-quality", "true masks")["verdict"] == NOT_SHOWN
    assert claim(finished, "latent-quality", "keep the camera's motion out")["verdict"] == HOLDS
    assert claim(finished, "latent-quality", "with the paper's loss alone, flow masks")["verdict"] == HOLDS
    assert claim(finished, "latent-quality", "three quarters")["estimate"]["value"] == pytest.approx(15 / 16)
    motion = claim(finished, "latent-quality", "the motion loss makes")
    assert motion["verdict"] == HOLDS and motion["estimate"]["value"] == pytest.approx(0.1)
    given_place = claim(finished, "latent-quality", "that its place does not tell")
    assert given_place["verdict"] == HOLDS and given_place["estimate"]["value"] == pytest.approx(0.6 - 0.05)
    carried = claim(finished, "latent-quality", "better than changing nothing")
    assert carried["verdict"] == HOLDS and carried["estimate"]["value"] == pytest.approx(0.5)
    aligned = claim(finished, "alignment", "the body subspace removed")
    assert aligned["verdict"] == HOLDS and aligned["estimate"]["value"] == pytest.approx(0.2, abs=0.01)
    assert (
        "CKA without the body subspace is without 2 directions"
        in (finished / "results/alignment/report.md").read_text()
    )
    blind = claim(finished, "decoupling", "visual encoder adds to intent")
    assert blind["paper"] == pytest.approx(0.049)
    assert "(paper B's figure lies " in (finished / "results/decoupling/report.md").read_text()


def test_probes_say_what_place_alone_tells_and_what_latents_and_background_codes_do(finished: Path) -> None:
    rows = {
        line.split(" | ")[0]: line.split(" | ")
        for line in (finished / "results/latent-quality/report.md").read_text().splitlines()
    }
    assert {cell.split()[0] for cell in rows["| R2 of effector from its last place alone"][1:]} == {"0.400"}
    for title in ("effector given place from action", "effector's last place from background"):
        assert "-" not in rows[f"| R2 of {title}"]
    continuous = list(rows["| figure"]).index("flow masks, continuous")
    assert rows["| R2 of effector from action latents"][continuous].startswith("0.950")
    assert rows["| background codes used"][1].startswith("50 %") and rows["| background codes used"][continuous] == "-"


def test_how_robots_were_matched_stands_in_the_report_by_body(finished: Path) -> None:
    for name in ("latent-quality", "alignment"):
        report = (finished / f"results/{name}/report.md").read_text()
        for body, pairs, partners, mismatch in (("panda", 90, 80, "0.020"), ("sawyer", 91, 81, "1.020")):
            assert (
                f"- Matched with {body}: {pairs} pairs of its frames have {partners} different partners of 9 clips of "
                f"hands; how far the effectors moved differs by {mismatch} half pictures on average."
            ) in report
    assert "2 seeds x bootstraps" in (finished / "results/latent-quality/report.md").read_text()


def test_masks_and_alignments_are_scored_in_the_reports(finished: Path) -> None:
    text = (finished / "RESULTS.md").read_text()
    assert "| IoU of flow masks of hands | 0.700 (0.700 to 0.700) |" in text
    assert claim(finished, "latent-quality", "flow masks cover 0.6")["verdict"] == HOLDS
    report = (finished / "results/adaptation/report.md").read_text()
    table = report[report.index("## Alignment of video to trajectories") :]
    for arm in ("joint-prior, 10 demonstrations", "joint-prior, 50", "joint-prior by contrast, 10 demonstrations"):
        assert f"| {arm}" in table[: table.index("## Claims")]
    assert "| 47.0 (chance 1.6) | 0.800 | 1.200 | 512 | 2 |" in table
    assert "Alignment of video" not in (finished / "results/decoupling/report.md").read_text()


def test_successes_are_those_of_scenes_and_differences_are_paired(finished: Path) -> None:
    found = values(finished, "adaptation")
    for arm in found["arms"]:
        solved = "".join("".join(task["outcomes"].values()) for task in arm["tasks"].values())
        assert len(solved) == 2 * 2 * 3
        assert arm["success"]["value"] == pytest.approx(solved.count("1") / len(solved))
    by_name = {arm["name"]: arm["success"]["value"] for arm in found["arms"]}
    for each in found["claims"]:
        if not each["than"]:
            assert each["estimate"]["value"] == pytest.approx(by_name[each["arm"]] - by_name[each["baseline"]])


def test_what_stands_behind_a_claim_about_video_stands_beside_it(finished: Path) -> None:
    policies, probes = ((finished / "results" / name / "report.md").read_text() for name in ("adaptation", "alignment"))
    text = (finished / "RESULTS.md").read_text()
    section = text[text.index("## Priors from video") :]
    for page in (policies, section):
        assert r"| 2 x 2 x 3 \* |" in page and r"\* fewer than the 3 seeds or 50 episodes" in page
    for page in (probes, section):
        assert r"| 2 seeds x bootstraps \* |" in page
    assert "| arm | all, % | seeds |" in policies
    assert f"Policies take {EULER_STEPS} Euler steps a chunk; " in policies and "Scenes are seeds 100000 to" in policies
    assert "Euler" not in probes


def test_intervals_of_figures_are_at_least_student_s_over_seeds(finished: Path) -> None:
    found = values(finished, "alignment")
    for arm in found["arms"]:
        for name, (first, second) in arm["by_seed"].items():
            estimate, spread = arm["figures"][name], 12.706 * abs(first - second) / 2
            assert estimate["low"] <= (first + second) / 2 - spread + 0.002
            assert estimate["high"] >= min(1.0, (first + second) / 2 + spread - 0.002)
    assert any(abs(first - second) > 1e-3 for arm in found["arms"] for first, second in arm["by_seed"].values())


@pytest.mark.parametrize(("successes", "percent"), [(0, 0), (6, 100)])
def test_where_a_baseline_of_any_claim_leaves_no_room_the_report_says_so(
    successes: int, percent: int, finished: Path
) -> None:
    found = values(finished, "adaptation")
    for arm in found["arms"]:
        for task in arm["tasks"].values():
            task |= {"successes": 3, "episodes": 6}
    tasks = {arm["name"]: arm["tasks"] for arm in found["arms"]}
    tasks["latent pretraining, 10 demonstrations"]["lift"]["successes"] = successes
    assert "Little room" not in format_report(found, [])
    for name in ("no pretraining, 50 demonstrations", "paper A's policy, 10 demonstrations"):
        tasks[name]["lift"]["successes"] = successes
    said = (
        f"no pretraining, 50 demonstrations: {percent} % of lift; paper A's policy, 10 demonstrations: {percent} % of "
        "lift."
    )
    assert said in format_report(found, [])
    # Without claims every arm is looked at.
    said = f"latent pretraining, 10 demonstrations: {percent} % of lift"
    assert said in format_pilot({**found, "claims": []})


def test_a_seed_that_is_not_done_enters_no_interval_and_is_said(finished: Path) -> None:
    found = values(finished, "decoupling")
    # Of the second seed it has what adaptation shares with it.
    assert {arm["name"]: arm["success"]["num_seeds"] for arm in found["arms"]} == {
        "no pretraining": 2,
        "full": 2,
        "intent + visual encoder": 1,
        "intent only": 1,
        "intent only, no pretraining": 1,
        "no pretraining, untrained eyes": 1,
        "no pretraining, loss on codes": 1,
        "full, half its sight hidden": 1,
        "no pretraining, half its sight hidden": 1,
        "visual encoder only": 1,
        "frozen VLM": 1,
    }
    report = (finished / "results/decoupling/report.md").read_text()
    assert "**Partial.**" in report and "13 of 22 policies" in report
    assert "Shortfall: 2 seeds of training, 3 were asked for." in report
    assert "Shortfall: 3 test episodes a task and seed, 50 were asked for." in report


def test_without_any_job_done_nothing_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", "video", "--collect", "--json", str(tmp_path / "all.json")]) == 0
    for name in VIDEO_EXPERIMENTS:
        assert {each["verdict"] for each in values(tmp_path, name)["claims"]} == {NOT_RUN}
        assert not (tmp_path / "results" / name / "plot.png").exists()
    assert "The control was not run." in (tmp_path / "RESULTS.md").read_text()
    assert len(json.loads((tmp_path / "all.json").read_text())) == 4


def test_the_plan_of_video_is_printed_without_any_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", "latent-quality", "--plan", "--seeds", "0,1"]) == 0
    out = capsys.readouterr().out
    for line in ("clips             4      0      4", "codes            16      0     16", "38 jobs left"):
        assert line in out
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_video_budget_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "video", "--budget", "gpu"]) == 2
    assert "unknown budget 'gpu', did you mean 'cpu'" in capsys.readouterr().err

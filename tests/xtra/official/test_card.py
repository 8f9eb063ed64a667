"""The model card of an export: its front matter, what it says of the mask and of probes, and that its words work."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from exporting import SEEN, SMALL, run_of
from markdown_it import MarkdownIt

from jobs import probe_verb
from jobs.flags import Call
from shards import store
from xtra.model import ModelConfig
from xtra.official import export
from xtra.official.card import Facts, Measured, card
from xtra.probe import ProbeResult

KINDS = [("encoder", "causal"), ("encoder", "none"), ("timm", "none"), ("torch", "causal"), ("torch", "none")]


def result(head: str = "attentive", accuracy: float = 0.6, **changes: Any) -> ProbeResult:
    correct = round(accuracy * 1000)
    made = ProbeResult(
        *("", SEEN, "t" * 64, "e" * 64, "flowers | 17", head, "trained", accuracy, accuracy - 0.03, accuracy + 0.03),
        *(correct, 1000, 17, 1e-3, 0.1, (), (), (), 12.5, "…"),
    )
    return replace(made, **changes)


def measured(**changes: Any) -> Measured:
    found = dataclasses.asdict(result(**changes))
    return Measured(**{field.name: found[field.name] for field in dataclasses.fields(Measured)})


def facts(target: str, mask: Any, model: ModelConfig = SMALL, **changes: Any) -> Facts:
    made = Facts("run-7", target, model, 123_456, SEEN, "m" * 64, mask, "", of_a_run=True, difference=1.5e-6)
    return replace(made, **changes)


def front(text: str) -> dict[str, Any]:
    empty, head, _ = text.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(head)


def rendered(text: str) -> str:
    """As HTML, without the front matter."""
    return MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])


def rows(text: str) -> list[list[str]]:
    """The cells of the table of what was measured."""
    return [re.findall(r"<td>(.*?)</td>", row) for row in rendered(text).split("<tr>")[2:]]


# ---- whole cards ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "mask"), KINDS)
@pytest.mark.parametrize("probes", [(), (measured(),), (measured(), measured(mask="none", accuracy=0.5))], ids=len)
@pytest.mark.parametrize("prefix", [False, True])
def test_a_card_is_whole(target: str, mask: Any, probes: tuple[Measured, ...], prefix: bool) -> None:
    text = card(facts(target, mask, replace(SMALL, prefix=prefix), probes=probes))
    assert not re.search(r"[{}]|FOLDER|TODO|None|NAME|\bnan\b|  ", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    assert "FOLDER" not in text
    page = rendered(text)
    assert re.findall(r"<h(\d)>(.*?)</h", page) == [
        ("1", "run-7: an XTRA encoder"),
        ("2", f"Mask: {mask}"),
        ("2", "What was measured"),
        ("2", "How to load it"),
        ("2", "Pictures"),
        ("2", "Licence"),
    ]
    assert "```" not in page
    assert "|---" not in page
    assert page.count("<table>") == bool(probes)


@pytest.mark.parametrize(("target", "library"), [("encoder", "transformers"), ("timm", "timm"), ("torch", None)])
def test_the_front_matter_is_what_the_hub_reads(target: str, library: str | None) -> None:
    yaml_fields = front(card(facts(target, "none")))
    assert yaml_fields.get("library_name") == library
    assert yaml_fields["pipeline_tag"] == "image-feature-extraction"
    assert "xtra" in yaml_fields["tags"]
    assert "license" not in yaml_fields
    assert front(card(facts(target, "none", license="cc-by-nc-4.0")))["license"] == "cc-by-nc-4.0"


def test_a_licence_is_that_of_the_weights_and_of_the_code() -> None:
    plain, named = card(facts("encoder", "causal")), card(facts("torch", "causal", license="mit"))
    assert "`modeling_xtra.py` is under the Apache License 2.0. No licence was named for the weights" in plain
    assert named.endswith("The weights: mit.\n")


# ---- masks and what was measured -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "mask", "said"),
    [
        (False, "causal", "under the block-causal mask, and `xtra probe` reads it so by default."),
        (
            False,
            "none",
            "under the block-causal mask, and `xtra probe` reads it so: this export gives different tokens.",
        ),
        (True, "none", "with prefix attention, and `xtra probe` reads it without a mask by default."),
        (
            True,
            "causal",
            "prefix attention, and `xtra probe` reads it without a mask: this export gives different tokens.",
        ),
    ],
    ids=["causal", "causal-none", "prefix", "prefix-causal"],
)
def test_the_card_says_which_mask_and_whose(prefix: bool, mask: Any, said: str) -> None:
    text = card(facts("encoder", mask, replace(SMALL, prefix=prefix)))
    assert said in text
    assert ("block-causal: a token attends" in text) == (mask == "causal")
    assert "by at most 1.5e-06" in text


def test_what_was_measured_stands_under_its_mask() -> None:
    probes = (
        measured(accuracy=0.6),
        measured(accuracy=0.55, mask="none"),
        measured(accuracy=0.4, head="linear", mask="causal"),
        measured(accuracy=0.9, selected_on="eval"),
    )
    cells = {
        "own": "60.0% (57.0% to 63.0%, 1,000 images)",
        "none": "55.0% (52.0% to 58.0%, 1,000 images)",
        "linear": "40.0% (37.0% to 43.0%, 1,000 images)",
        "eval": "90.0% (87.0% to 93.0%, 1,000 images)",
    }
    biased = "attentive, point chosen on the evaluation set: overestimates accuracy"
    text = card(facts("encoder", "causal", probes=probes))
    assert "<th>mask causal (this export)</th>\n<th>mask none</th>" in rendered(text)
    assert rows(text) == [
        ["flowers | 17", "attentive", cells["own"], cells["none"]],
        ["flowers | 17", "linear", cells["linear"], "not measured"],
        ["flowers | 17", biased, cells["eval"], "not measured"],
    ]
    assert "To measure the rest, with a labelled" in text
    both = card(facts("encoder", "causal", probes=probes[:2]))
    assert "not measured" not in both
    assert "Neither mask was measured. To measure them, with a labelled" in card(facts("encoder", "causal"))
    assert rows(card(facts("timm", "none", probes=probes)))[0][2:] == [cells["none"], cells["own"]]
    prefix = card(facts("encoder", "none", replace(SMALL, prefix=True), probes=probes[:1]))
    assert rows(prefix)[0][2:] == [cells["own"], "not measured"]


@pytest.mark.parametrize("prefix", [False, True])
def test_the_commands_for_what_was_not_measured_are_commands(prefix: bool) -> None:
    model = replace(SMALL, prefix=prefix)
    for probes, masks in (
        ((), {"own", "causal" if prefix else "none"}),
        ((measured(),), {"causal" if prefix else "none"}),
    ):
        text = card(facts("encoder", "none", model, probes=probes))
        commands = re.findall(r"^xtra probe (.*)$", text.split("```\n")[1], re.MULTILINE)
        configs = [probe_verb.read(Call("probe", "RUN", command.split()))[1] for command in commands]
        assert {config.mask for config in configs} == masks
        assert {config.checkpoint for config in configs} == {"run-7"}
    text = card(facts("encoder", "none", name="b16.ckpt", of_a_run=False))
    assert "xtra export b16.ckpt --to run --out imported\nxtra probe imported --mask none --train" in text


def test_results_of_the_run_are_in_the_card_of_its_checkpoint(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", SMALL)
    for made in (
        result(),
        result(mask="none", accuracy=0.5),
        result(samples_seen=640, accuracy=0.1),
        result(encoder="random", accuracy=0.2),
        result(head="pixels", encoder="none", accuracy=0.3),
    ):
        store.put_json(store.join(run, "probes", made.name(own=True)), dataclasses.asdict(made))
    store.put(store.join(run, "probes", "torn.json"), b'{"set": "x"')
    said = export.run(export.Config(run, str(tmp_path / "out"))).report
    text = (tmp_path / "out" / "README.md").read_text()
    assert [row[1:] for row in rows(text)] == [
        ["attentive", "60.0% (57.0% to 63.0%, 1,000 images)", "50.0% (47.0% to 53.0%, 1,000 images)"]
    ]
    (line,) = [line for line in said if line.startswith("not in the card: ")]
    assert "torn.json" in line
    old = {k: v for k, v in dataclasses.asdict(result(head="knn")).items() if k not in ("mask", "right", "confused")}
    store.put_json(store.join(run, "probes", "older.json"), old)
    export.run(export.Config(run, str(tmp_path / "out")))
    assert [row[1] for row in rows((tmp_path / "out" / "README.md").read_text())] == ["attentive", "knn"]


# ---- its code ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [pytest.param("torch", marks=pytest.mark.slow), "encoder"])
def test_the_code_for_torch_alone_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    export.run(export.Config(run_of(tmp_path / "run", SMALL), str(tmp_path / "out"), to=target))  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.syspath_prepend(str(tmp_path / "out"))
    code = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[-1]
    made: dict[str, Any] = {"images": torch.zeros(2, 3, 32, 32)}
    try:
        exec(code, made)
    finally:
        sys.modules.pop("modeling_xtra", None)
    assert made["tokens"].shape == (2, SMALL.tokens, SMALL.width)
    assert len(code.splitlines()) == 3


def test_the_code_for_transformers_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="transformers, which opens exports, is not installed")
    export.run(export.Config(run_of(tmp_path / "run", SMALL), str(tmp_path / "out")))
    monkeypatch.chdir(tmp_path / "out")
    code = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[0]
    made: dict[str, Any] = {"images": torch.zeros(2, 3, 32, 32)}
    exec(code, made)
    assert made["tokens"].shape == (2, SMALL.tokens, SMALL.width)
    hub = importlib.import_module("huggingface_hub")
    assert hub.ModelCard.load("README.md").data.library_name == "transformers"

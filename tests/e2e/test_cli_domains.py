"""capflow-domains as it is typed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pyarrow import parquet

from tests.datasets import draw_picture, entries_with_pictures, film_video, read_lines, write_plan
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e

POTTERY = """
name: Pottery
aliases: [Ceramics]
description: A pot, bowl or tile where make, glaze and firing matter more than the scene around it.
agents:
  visual_guideline:
  potter:
    stage: perceive
    prompt: Describe body, form, glaze and firing marks of the piece.
  general_reasoning:
  general_summary:
  judge:
"""


@pytest.fixture
def own_domains(cli: Cli) -> Path:
    folder = cli.folder / "my-domains"
    folder.mkdir()
    (folder / "pottery.yaml").write_text(POTTERY)
    return folder


def test_all_domains_are_listed_with_their_agents(cli: Cli, own_domains: Path) -> None:
    answer = cli.run("capflow-domains", "list")
    cli.environment["CAPFLOW_DOMAINS"] = str(own_domains)
    with_own = json.loads(cli.run("capflow-domains", "list", "--json").stdout)

    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert len(lines) == 9
    assert re.split(r"  +", lines[-1]) == [
        "Video & Temporal",
        "video",
        "video_guideline, video > video_reasoning > video_summary > video_judge",
        "(also Video)",
    ]
    assert [domain["name"] for domain in with_own][-1] == "Pottery"
    assert {"name": "potter", "stage": "perceive"} in with_own[-1]["agents"]


def test_a_domain_is_shown_with_what_each_agent_sees(cli: Cli) -> None:
    answer = cli.run("capflow-domains", "show", "chart & math")

    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("Structure & Math (also Chart & Math, Structure): ")
    seen = "sees the media, visual_guideline, structure, infographic, recognized_text\n"
    assert f"reason     general_reasoning    {seen}" in answer.stdout
    assert "$reports" in answer.stdout


def test_the_very_prompts_of_a_picture_are_rendered(cli: Cli, own_domains: Path) -> None:
    draw_picture(cli.folder / "sample.png", 1, size=(1024, 768))

    arguments = ("show", "ceramics", "--domains", own_domains, "--render", "sample.png")
    text = cli.run("capflow-domains", *arguments).stdout
    prompts = json.loads(cli.run("capflow-domains", *arguments, "--json").stdout)["prompts"]

    assert [prompt["agent"] for prompt in prompts] == [
        "router",
        "visual_guideline",
        "potter",
        "general_reasoning",
        "general_summary",
        "judge",
    ]
    assert {prompt["media"] for prompt in prompts} == {"<picture sample.png, 1024 x 768: about 1,003 tokens>"}
    assert len({prompt["system"] for prompt in prompts}) == 1
    assert "I. Pottery: A pot, bowl or tile" in prompts[0]["instruction"]
    assert '<report from="potter">\n[what potter writes]\n</report>' in prompts[3]["instruction"]
    assert "<caption>\n[what general_summary writes]\n</caption>" in prompts[5]["instruction"]
    for prompt in prompts:
        assert f"--- user\n{prompt['media']}\n{prompt['instruction']}" in text


def test_a_video_is_rendered_for_its_domain_alone(cli: Cli) -> None:
    film_video(cli.folder / "clip.mp4", seconds=2)
    draw_picture(cli.folder / "sample.png", 1)

    shown = cli.run("capflow-domains", "show", "video", "--render", "clip.mp4")
    wrong = [
        cli.run("capflow-domains", "show", "video", "--render", "sample.png"),
        cli.run("capflow-domains", "show", "natural", "--render", "clip.mp4"),
        cli.run("capflow-domains", "show", "natural", "--render", "gone.png"),
        cli.run("capflow-domains", "show", "nature"),
    ]

    assert "<video clip.mp4, 112 x 84, 2.0 s: at most 8,192 tokens>" in shown.stdout
    assert [(answer.returncode, answer.stdout) for answer in wrong] == [(2, "")] * 4
    assert [answer.stderr.count("\n") for answer in wrong] == [1] * 4
    assert "sample.png is a picture. Name a video" in wrong[0].stderr
    assert "holds an MP4 or MOV video, not a picture" in wrong[1].stderr
    assert "does not exist" in wrong[2].stderr
    assert "use one of: Code & Programming" in wrong[3].stderr


def test_a_folder_of_good_domains_has_nothing_to_fix(cli: Cli, own_domains: Path) -> None:
    answer = cli.run("capflow-domains", "check", own_domains)

    assert (answer.returncode, answer.stdout) == (0, f"{own_domains}: nothing to fix; 10 domains with it\n")


def test_every_fault_of_every_file_is_told(cli: Cli, own_domains: Path) -> None:
    (own_domains / "glass.yaml").write_text(POTTERY.replace("description", "descripton"))
    (own_domains / "stone.yaml").write_text("name: [")
    (own_domains / "wood.yaml").write_text(
        "name: Natural\ndescription: Wood.\n"
        "agents: {carver: {prompt: x}, general_reasoning: {sees: [nobody]},"
        " turner: {stage: perceive, prompt: $}}"
    )

    answer = cli.run("capflow-domains", "check", own_domains)

    assert (answer.returncode, answer.stdout) == (2, "")
    faults = [line.partition(f"{own_domains}/")[2] for line in answer.stderr.splitlines()]
    assert [fault.split(": ")[:2] for fault in faults] == [
        ["glass.yaml", "top level"],
        ["glass.yaml", "description"],
        ["stone.yaml", "line 1"],
        ["wood.yaml", "name or aliases"],
        ["wood.yaml", "agents.carver"],
        ["wood.yaml", "agents.general_reasoning"],
        ["wood.yaml", "agents.turner"],
        ["wood.yaml", "agents.turner"],
    ]

    as_json = cli.run("capflow-domains", "check", own_domains, "--json")

    assert as_json.returncode == 2
    assert len(json.loads(as_json.stdout)["problems"]) == 8


TAGS = """
name: Tags
description: tags
agents:
  tagger:
    stage: summarize
    prompt: List what is there.
    answer: json
    schema: {type: object, properties: {title: {type: string}, colours: {type: array, items: {type: TYPE}}}}
"""


def test_a_caption_by_a_schema_is_an_object_in_jsonl_and_json_text_in_parquet(quick_cli: Cli) -> None:
    domains = quick_cli.folder / "domains"
    domains.mkdir()
    (domains / "tags.yaml").write_text(TAGS.replace("TYPE", "strng"))
    bad = quick_cli.run("capflow", "domains", "check", domains)
    (domains / "tags.yaml").write_text(TAGS.replace("TYPE", "string"))
    quick_cli.environment["CAPFLOW_DOMAINS"] = str(domains)
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 2), task="Tags")

    made = quick_cli.run("capflow", "caption", plan, "-o", "out", "--run", "tags")
    exported = quick_cli.run("capflow", "export", "tags", "--format", "parquet", "-o", "parquet")

    assert bad.returncode == 2
    assert (
        "tags.yaml: agents.tagger: schema.properties.colours.items.type: 'strng'" in bad.stdout + bad.stderr
    )
    assert made.returncode == exported.returncode == 0, made.stderr + exported.stderr
    records = read_lines(quick_cli.folder / "out" / "Rank0_node0_set.jsonl")
    assert [record["caption"].keys() for record in records] == [{"title", "colours"}] * 2
    assert json.loads(records[0]["conversations"][-1]["value"]) == records[0]["caption"]
    (file,) = (quick_cli.folder / "parquet").glob("*.parquet")
    texts = parquet.read_table(file).column("caption").to_pylist()
    assert [json.loads(text) for text in texts] == [record["caption"] for record in records]


def test_a_folder_without_domain_files_is_refused(cli: Cli) -> None:
    answer = cli.run("capflow-domains", "check", "nowhere")

    assert answer.returncode == 2
    assert "nowhere: holds no domain file; name a folder with at least one *.yaml" in answer.stderr


def test_prompts_are_shown_in_the_language_that_workers_would_ask_for(cli: Cli) -> None:
    draw_picture(cli.folder / "a.png", 1)
    cli.environment["CAPFLOW_LANGUAGE"] = "de"

    answer = cli.run("capflow", "domains", "show", "Natural", "--render", "a.png")

    assert "Write in German;" in answer.stdout
    assert "Write in English;" not in answer.stdout

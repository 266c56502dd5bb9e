"""The packaged domains, and what a user's folder of domain files may change."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from capflow_tasks.domains.catalogue import Catalogue, Domain, load_catalogue, load_workflow
from capflow_tasks.domains.yaml_file import Keys, read_yaml
from capflow_tasks.errors import UserError, WorkflowError
from capflow_tasks.records import Modality, Stage, Workflow

#: Domain: aliases, and its agents that perceive, reason, summarize and score.
TABLE = {
    "Natural": ("Natural Perception", "visual_guideline natural", "general_reasoning"),
    "Structure & Math": (
        "Chart & Math, Structure",
        "visual_guideline structure infographic recognized_text",
        "general_reasoning",
    ),
    "Infographic & Document": (
        "Document, Infographic",
        "visual_guideline infographic ocr recognized_text",
        "general_reasoning",
    ),
    "Medical & Bio-Imaging": ("Medical", "visual_guideline natural", "medical_reasoning"),
    "UI & Interaction": ("UI", "ui ocr recognized_text", "general_reasoning"),
    "Code & Programming": ("Code", "visual_guideline coder recognized_text", "general_reasoning"),
    "Knowledge & Education": ("Knowledge", "visual_guideline infographic", "knowledge_reasoning"),
    "Synthetic & Aesthetic": ("Synthetic", "visual_guideline texture", "general_reasoning"),
    "Video & Temporal": ("Video", "video_guideline video", "video_reasoning"),
}
IMAGE_DIMENSIONS = [
    "factual_accuracy",
    "information_completeness",
    "reasoning_rigor",
    "core_intent_capture",
    "professionalism",
]
VIDEO_DIMENSIONS = [
    "temporal_factual_accuracy",
    "event_detail_coverage",
    "temporal_causal_logic",
    "core_intent_capture",
    "professionalism",
]
MINIMAL = """\
name: Aerial
description: views from above
agents:
  visual_guideline:
  general_summary:
"""


@pytest.fixture(scope="module")
def packaged() -> Catalogue:
    return load_catalogue(None)


def names(domain: Domain, stage: Stage) -> list[str]:
    return [agent.name for agent in domain.agents_of(stage)]


def packaged_text(name: str) -> str:
    return (files("capflow_tasks") / "domains" / name).read_text(encoding="utf-8")


def refusal(folder: Path, text: str, name: str = "aerial.yaml") -> str:
    """What is said when this file stands in the user's folder."""
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(WorkflowError) as raised:
        load_catalogue(folder)
    return str(raised.value)


def digests(catalogue: Catalogue) -> dict[tuple[str, str], str]:
    return {
        (domain.name, agent.name): agent.digest for domain in catalogue.domains for agent in domain.agents
    }


def changed(before: Catalogue, after: Catalogue) -> set[tuple[str, str]]:
    old, new = digests(before), digests(after)
    return {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}


@pytest.mark.parametrize("name", TABLE)
def test_each_domain_has_its_agents(packaged: Catalogue, name: str) -> None:
    aliases, perceivers, reasoner = TABLE[name]
    domain = packaged.resolve(name)
    is_video = domain.modality is Modality.VIDEO
    assert domain.name == name
    assert ", ".join(domain.aliases) == aliases
    assert names(domain, Stage.PERCEIVE) == perceivers.split()
    assert names(domain, Stage.REASON) == [reasoner]
    assert names(domain, Stage.SUMMARIZE) == ["video_summary" if is_video else "general_summary"]
    assert names(domain, Stage.SCORE) == ["video_judge" if is_video else "judge"]


def test_there_are_nine_domains_and_only_one_is_for_video(packaged: Catalogue) -> None:
    assert {domain.name for domain in packaged.domains} == set(TABLE)
    assert packaged.for_video().name == "Video & Temporal"
    assert packaged.for_video() not in packaged.routable
    assert len(packaged.routable) == 8


def test_the_video_judge_grades_other_things_than_the_image_judge(packaged: Catalogue) -> None:
    for domain in packaged.domains:
        (judge,) = domain.agents_of(Stage.SCORE)
        expected = VIDEO_DIMENSIONS if domain.modality is Modality.VIDEO else IMAGE_DIMENSIONS
        assert list(judge.dimensions) == expected
        assert all(set(dimension.grades) == {1, 2, 3} for dimension in judge.dimensions.values())


@pytest.mark.parametrize("task", ["natural", " NATURAL perception ", "Natural\tPerception", "Natural"])
def test_a_task_is_found_by_name_or_alias_whatever_its_case_and_blanks(
    packaged: Catalogue, task: str
) -> None:
    assert packaged.resolve(task).name == "Natural"


@pytest.mark.parametrize("task", ["", "Naturally", "natural.yaml"])
def test_an_unknown_task_is_refused_with_all_that_are_allowed(packaged: Catalogue, task: str) -> None:
    with pytest.raises(WorkflowError) as raised:
        packaged.resolve(task)
    assert all(name in str(raised.value) for name in TABLE)
    assert "Chart & Math" in str(raised.value)


def test_perceivers_work_alone_and_later_stages_see_all_before_them(packaged: Catalogue) -> None:
    for domain in packaged.domains:
        perceivers, reasoners = names(domain, Stage.PERCEIVE), names(domain, Stage.REASON)
        (judge,) = domain.agents_of(Stage.SCORE)
        assert all(agent.sees == () for agent in domain.agents_of(Stage.PERCEIVE))
        assert all(agent.sees == tuple(perceivers) for agent in domain.agents_of(Stage.REASON))
        assert domain.captioner.sees == (*perceivers, *reasoners)
        assert judge.sees == (domain.captioner.name,)


def test_no_repetition_penalty_touches_text_that_is_to_be_verbatim(packaged: Catalogue) -> None:
    verbatim = {"ocr", "coder", "structure", "infographic", "ui", "general_summary", "video_summary"}
    agents = [agent for domain in packaged.domains for agent in domain.agents if agent.name in verbatim]
    assert agents
    assert all(agent.sampling.repetition_penalty == 1.0 for agent in agents)


def test_a_summary_has_room_for_the_text_that_was_transcribed(packaged: Catalogue) -> None:
    for domain in packaged.domains:
        for agent in domain.agents:
            if agent.name in {"ocr", "coder", "structure"}:
                assert domain.captioner.sampling.max_tokens > agent.sampling.max_tokens


def test_letters_follow_the_file_names_and_added_domains_come_last(
    packaged: Catalogue, tmp_path: Path
) -> None:
    (tmp_path / "aerial.yaml").write_text(MINIMAL)
    (tmp_path / "natural.yaml").write_text(packaged_text("natural.yaml"))
    letters = load_catalogue(tmp_path).letters
    assert list(letters) == list("ABCDEFGHI")
    assert {letter: letters[letter].name for letter in "ABCDEFGH"} == {
        letter: domain.name for letter, domain in packaged.letters.items()
    }
    assert letters["I"].name == "Aerial"


def test_the_router_has_letters_for_26_domains_and_no_more(tmp_path: Path) -> None:
    for number in range(18):
        (tmp_path / f"extra_{number:02}.yaml").write_text(MINIMAL.replace("Aerial", f"Extra {number}"))
    assert list(load_catalogue(tmp_path).letters)[-1] == "Z"
    message = refusal(tmp_path, MINIMAL, "one_more.yaml")
    assert "one_more.yaml: the router has letters for 26" in message


def test_an_added_domain_may_drop_stages_and_be_for_video(tmp_path: Path) -> None:
    (tmp_path / "aerial.yaml").write_text(MINIMAL + "modality: video\naliases: [Drone]\n")
    catalogue = load_catalogue(tmp_path)
    aerial = catalogue.resolve("drone")
    assert aerial.captioner.sees == ("visual_guideline",)
    assert aerial.agents_of(Stage.SCORE) == ()
    assert aerial not in catalogue.routable


def test_a_users_file_replaces_the_packaged_one_and_touches_no_other_domain(
    packaged: Catalogue, tmp_path: Path
) -> None:
    text = packaged_text("natural.yaml").replace("  judge:", "  judge: {sampling: {max_tokens: 128}}")
    (tmp_path / "natural.yaml").write_text(text)
    catalogue = load_catalogue(tmp_path)
    assert changed(packaged, catalogue) == {("Natural", "judge")}
    for old, new in zip(packaged.domains, catalogue.domains, strict=True):
        assert old.name == new.name
        assert (old.digest != new.digest) == (old.name == "Natural")
    judge = catalogue.resolve("Natural").agents[-1]
    assert (judge.sampling.max_tokens, judge.sampling.temperature) == (128, 0.0)


def test_a_changed_prompt_changes_the_digests_of_all_that_follow_from_it_and_of_nothing_else(
    packaged: Catalogue, tmp_path: Path
) -> None:
    text = packaged_text("natural.yaml").replace("  natural:", "  natural: {prompt: Describe the colours.}")
    (tmp_path / "natural.yaml").write_text(text)
    assert changed(packaged, load_catalogue(tmp_path)) == {
        ("Natural", agent) for agent in ("natural", "general_reasoning", "general_summary", "judge")
    }


def test_a_verified_caption_has_another_digest_and_so_have_its_grades(packaged: Catalogue) -> None:
    found = changed(packaged, load_workflow(Workflow.VERIFIED))

    assert {agent for domain, agent in found if domain == "Natural"} == {"general_summary", "judge"}


def test_a_users_defaults_are_merged_over_ours_key_by_key(packaged: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "_defaults.yaml").write_text("agents: {judge: {sampling: {temperature: 0.5}}}\n")
    catalogue = load_catalogue(tmp_path)
    judges = {(name, "judge") for name in TABLE if name != "Video & Temporal"}
    assert changed(packaged, catalogue) == judges
    judge, ours = catalogue.resolve("UI").agents[-1], packaged.resolve("UI").agents[-1]
    assert (judge.sampling.temperature, judge.sampling.max_tokens) == (0.5, ours.sampling.max_tokens)
    assert (judge.prompt, judge.dimensions) == (ours.prompt, ours.dimensions)
    assert catalogue.router.digest == packaged.router.digest


def test_an_agents_language_goes_before_its_domains_and_that_before_the_setting(tmp_path: Path) -> None:
    (tmp_path / "aerial.yaml").write_text(
        "name: Aerial\ndescription: From above.\nlanguage: fr\n"
        "agents: {natural: , general_summary: {language: any}}\n"
    )
    catalogue = load_catalogue(tmp_path, "de")

    assert [agent.language for agent in catalogue.resolve("Aerial").agents] == ["fr", "any"]
    assert {agent.language for agent in catalogue.resolve("Natural").agents} == {"de"}


def test_a_language_that_has_no_name_here_is_refused(tmp_path: Path) -> None:
    assert "language" in refusal(tmp_path, "language: klingon\n", "_defaults.yaml")


def test_no_agent_has_the_name_of_the_list_of_claims(tmp_path: Path) -> None:
    faults = refusal(
        tmp_path, MINIMAL.replace("  general", "  verifier: {stage: reason, prompt: Look.}\n  general")
    )
    assert "agents.verifier: the name is that of the list" in faults


@pytest.mark.parametrize("agent", ["general_summary", "judge"])
def test_only_an_agent_that_others_can_do_without_may_be_optional(agent: str, tmp_path: Path) -> None:
    faults = refusal(tmp_path, f"agents: {{{agent}: {{optional: true}}}}\n", "_defaults.yaml")
    assert "optional: for an agent of stage perceive or reason" in faults


def test_an_agent_names_how_it_is_sampled_and_may_think(packaged: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "_defaults.yaml").write_text(
        "agents:\n  general_reasoning:\n    thinking: true\n"
        "    sampling: {top_k: 20, min_p: 0.05, thinking_tokens: 900}\n"
        "  judge: {thinking: true, sampling: {presence_penalty: 1.5, frequency_penalty: 0.5}}\n"
    )
    natural = load_catalogue(tmp_path).resolve("Natural")
    (reasoner,), (judge,) = natural.agents_of(Stage.REASON), natural.agents_of(Stage.SCORE)

    assert reasoner.sampling.thinking_tokens == 900
    assert reasoner.sampling.named == {"top_k": 20, "min_p": 0.05, "repetition_penalty": 1.05}
    assert judge.sampling.thinking_tokens == 2048
    assert judge.sampling.named == {"temperature": 0.0, "presence_penalty": 1.5, "frequency_penalty": 0.5}
    assert not any(agent.sampling.thinking_tokens for domain in packaged.domains for agent in domain.agents)


def test_prose_is_sampled_as_the_model_recommends(packaged: Catalogue) -> None:
    prose = packaged.resolve("Natural").captioner.sampling
    assert prose.temperature is None
    assert prose.completed({"temperature": 0.7, "top_k": 20})["temperature"] == 0.7
    assert prose.completed({}) == {"temperature": 0.2, "top_p": 0.9, "repetition_penalty": 1.0}


def test_a_changed_system_line_changes_every_digest(packaged: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "_defaults.yaml").write_text("system: You describe pictures in Dutch.\n")
    catalogue = load_catalogue(tmp_path)
    assert catalogue.system == "You describe pictures in Dutch."
    assert changed(packaged, catalogue) == set(digests(packaged))
    assert catalogue.router.digest != packaged.router.digest


def test_the_routers_digest_follows_the_descriptions_it_is_shown(packaged: Catalogue, tmp_path: Path) -> None:
    text = packaged_text("ui.yaml").replace("screens that one could operate", "screens")
    (tmp_path / "ui.yaml").write_text(text)
    catalogue = load_catalogue(tmp_path)
    assert catalogue.router.digest != packaged.router.digest
    assert changed(packaged, catalogue) == set()


def test_laying_a_file_out_differently_changes_no_digest(packaged: Catalogue, tmp_path: Path) -> None:
    text = """\
# the same, said in another way
agents: {"visual_guideline": {}, natural: , general_reasoning: {}, general_summary: {sees:
  [visual_guideline, natural, general_reasoning]}, judge: {media: true, sampling: {temperature: 0}}}

version: 7
description: "photographs"
name: 'Natural'
"""
    (tmp_path / "natural.yaml").write_text(text)
    catalogue = load_catalogue(tmp_path)
    assert changed(packaged, catalogue) == set()
    assert catalogue.resolve("natural").digest == packaged.resolve("natural").digest
    assert catalogue.resolve("natural").version == 7


def test_the_order_of_the_dimensions_is_part_of_the_digest(tmp_path: Path) -> None:
    rubric = "{description: good, grades: {1: a, 2: b, 3: c}}"
    judge = (
        "  grader:\n    stage: score\n    answer: scores\n    prompt: $caption $dimensions\n    dimensions:\n"
    )
    seen = set()
    for first, second in (("clarity", "brevity"), ("brevity", "clarity")):
        dimensions = f"      {first}: {rubric}\n      {second}: {rubric}\n"
        (tmp_path / "aerial.yaml").write_text(MINIMAL + judge + dimensions)
        grader = load_catalogue(tmp_path).resolve("aerial").agents[-1]
        assert list(grader.dimensions) == [first, second]
        seen.add(grader.digest)
    assert len(seen) == 2


def test_an_agent_may_see_another_of_its_own_stage(tmp_path: Path) -> None:
    polish = "  polish: {stage: summarize, sees: [general_summary], prompt: 'Shorten: $reports'}\n  judge:\n"
    (tmp_path / "aerial.yaml").write_text(MINIMAL + polish)
    aerial = load_catalogue(tmp_path).resolve("aerial")
    assert aerial.captioner.name == "polish"
    assert aerial.agents[-1].sees == ("polish",)


@pytest.mark.parametrize(
    ("text", "key", "allowed"),
    [
        (MINIMAL + "promt: x\n", "top level: unknown key 'promt'", "agents"),
        (MINIMAL + "  judge: {max_tokens: 9}\n", "agents.judge: unknown key 'max_tokens'", "sampling"),
        (
            MINIMAL + "  judge: {sampling: {seed: 9}}\n",
            "agents.judge.sampling: unknown key 'seed'",
            "max_tokens",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_file_key_and_what_is_allowed(
    tmp_path: Path, text: str, key: str, allowed: str
) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'aerial.yaml'}: {key}")
    assert allowed in message.split("use one of: ")[1]
    assert "\n" not in message


def test_every_fault_of_a_folder_is_listed_at_once(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("name: A\nname: B\n")
    text = "nme: A\ndescription: 3\nagents: {natural: {prmpt: x, sampling: {max_tokens: 0}}}\n"

    message = refusal(tmp_path, text)

    places = [line.partition(".yaml: ")[2].partition(": ")[0] for line in message.splitlines()]
    natural = "agents.natural"
    assert places == [
        *("top level", "name", "description", natural, f"{natural}.sampling.max_tokens", "line 2")
    ]


def test_an_unknown_key_in_the_defaults_is_refused_too(tmp_path: Path) -> None:
    message = refusal(tmp_path, "sytem: x\n", "_defaults.yaml")
    assert "_defaults.yaml: top level: unknown key 'sytem'" in message


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (MINIMAL + "name: Again\n", "line 6: key 'name' is given twice"),
        (MINIMAL + "  visual_guideline:\n", "line 6: key 'visual_guideline' is given twice"),
        ("name: [Aerial\ndescription: x\n", "line 2: "),
        ("name: a: b\n", "line 1: "),
        ("name: \x07\n", "not YAML in UTF-8"),
        ("!!python/none 1: x\n", "line 1: could not determine a constructor for the tag"),
        ("name: !!int one\n", "not YAML in UTF-8 ("),
        ("version: " + "9" * 5000, "not YAML in UTF-8 (Exceeds the limit"),
        ("- " * 600, "not YAML in UTF-8 (maximum recursion depth exceeded"),
        ("", "top level: "),
        ("- Aerial\n", "top level: "),
        ("name: Aerial\nagents: {general_summary: }\n", "description: missing"),
        (MINIMAL.replace("Aerial", "1"), "name: Input should be a valid string; change 1"),
        (MINIMAL.replace("Aerial", "' '"), "name: "),
        (MINIMAL + "modality: audio\n", "modality: Input should be 'image' or 'video'; change 'audio'"),
        (MINIMAL + "version: two\n", "version: "),
        (MINIMAL + "aliases: Drone\n", "aliases: "),
        (MINIMAL + "  Judge:\n", "agents.Judge: "),
        (MINIMAL + "  judge: {media: 1}\n", "agents.judge.media: "),
        (MINIMAL + "  judge: {sees: some}\n", "agents.judge.sees: "),
        (MINIMAL + "  judge: {sampling: {max_tokens: 0}}\n", "agents.judge.sampling.max_tokens: "),
        (MINIMAL + "  judge: {sampling: {temperature: -1}}\n", "agents.judge.sampling.temperature: "),
        (
            MINIMAL + "  judge: {dimensions: {wit: {description: x, grades: {1: a, 3: c}}}}\n",
            "agents.judge.dimensions.wit.grades: ",
        ),
        ("name: Aerial\ndescription: x\nagents: {}\n", "agents: "),
    ],
)
def test_a_malformed_file_is_refused_in_one_line_that_says_where(
    tmp_path: Path, text: str, fault: str
) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'aerial.yaml'}: {fault}")
    assert "\n" not in message


def test_every_fault_of_a_file_has_a_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, MINIMAL + "modality: audio\nversion: two\n")
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize(
    ("agent", "fault"),
    [
        (
            "late: {stage: reason, sees: [nobody], prompt: $reports}",
            "sees: 'nobody' is not listed before late",
        ),
        ("late: {stage: reason, sees: [late], prompt: $reports}", "sees: 'late' is not listed before late"),
        ("late: {stage: reason, sees: [general_summary], prompt: $reports}", "sees: 'general_summary'"),
        ("late: {stage: reason, sees: all, prompt: Think.}", "prompt: lacks $reports"),
        ("late: {stage: reason, prompt: Think of $report}", "prompt: unknown placeholder $report; use"),
        ("late: {stage: reason, prompt: Think of $caption}", "prompt: unknown placeholder $caption"),
        ("late: {stage: reason, prompt: It costs $5}", "prompt: a $ stands alone; write $$"),
        ("late: {stage: reason}", "prompt: missing here and in _defaults.yaml"),
        ("late: {prompt: Think.}", "stage: missing here and in _defaults.yaml"),
        ("late:", "(as in _defaults.yaml): stage: missing"),
        ("late: {stage: route, answer: letter, prompt: $domains}", "stage: route belongs to the router"),
        ("late: {stage: reason, answer: scores, prompt: Think.}", "answer: stage reason needs text"),
        ("late: {stage: reason, tool: ocr, note: Read.}", "tool: for an agent of stage perceive"),
        ("late: {stage: perceive, tool: ocr}", "note: missing here and in _defaults.yaml"),
        ("late: {stage: perceive, tool: ocr, note: Read., prompt: Look.}", "prompt: a tool has none; remove"),
        ("late: {stage: perceive, prompt: Look., note: Read.}", "note: for an agent with a tool; remove it"),
        ("judge: {}", "stage: summarize cannot follow judge (score)"),
    ],
)
def test_agents_that_do_not_fit_together_are_refused(tmp_path: Path, agent: str, fault: str) -> None:
    text = MINIMAL.replace("  general_summary:", f"  {agent}\n  general_summary:")
    assert fault in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ("prompt: Grade it.", "prompt: lacks $caption"),
        ("answer: text", "answer: stage score needs scores"),
        ("dimensions: {}", "dimensions: an agent of stage score needs some"),
        (
            "dimensions: {overall: {description: x, grades: {1: a, 2: b, 3: c}}}",
            "dimensions: overall is always given",
        ),
    ],
)
def test_a_judge_that_cannot_judge_is_refused(tmp_path: Path, keys: str, fault: str) -> None:
    message = refusal(tmp_path, f"{MINIMAL}  judge: {{{keys}}}\n")
    assert f"agents.judge: {fault}" in message


def test_a_fault_in_the_users_defaults_names_them(tmp_path: Path) -> None:
    message = refusal(tmp_path, "agents: {visual_guideline: {prompt: $colour}}\n", "_defaults.yaml")
    assert "agents.visual_guideline (as in _defaults.yaml): prompt: unknown placeholder $colour" in message


def test_a_router_prompt_without_the_domains_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, "router: {prompt: Choose a letter.}\n", "_defaults.yaml")
    assert message.startswith(f"{tmp_path / '_defaults.yaml'}: router: prompt: lacks $domains")


def test_a_domain_in_which_nobody_writes_the_caption_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, MINIMAL.replace("  general_summary:\n", ""))
    assert "aerial.yaml: agents: none is of stage summarize" in message


@pytest.mark.parametrize("claim", ["aliases: [ui]", "aliases: [Drone, STRUCTURE]", "aliases: ['code ']"])
def test_a_name_belongs_to_one_domain(tmp_path: Path, claim: str) -> None:
    message = refusal(tmp_path, f"{MINIMAL}{claim}\n")
    assert "aerial.yaml: name or aliases: " in message
    assert "give your file the same file name" in message


@pytest.mark.parametrize("folder", ["nowhere", "aerial.yaml"])
def test_a_folder_that_is_none_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "aerial.yaml").write_text(MINIMAL)
    with pytest.raises(WorkflowError, match="not a folder"):
        load_catalogue(tmp_path / folder)


def test_a_yml_file_is_refused_rather_than_overlooked(tmp_path: Path) -> None:
    assert "aerial.yml: domain files end in .yaml" in refusal(tmp_path, MINIMAL, "aerial.yml")


def test_an_empty_folder_changes_nothing(packaged: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("not a domain")
    assert load_catalogue(tmp_path) == packaged


def test_a_budget_is_the_domains_with_the_agents_own_on_top(tmp_path: Path) -> None:
    (tmp_path / "aerial.yaml").write_text(
        MINIMAL.replace("  visual_guideline:", "  visual_guideline: {budget: {fps: 4, max_frames: 8}}")
        + "budget: {fps: 1, total_pixels: 784000}\n"
    )
    first, last = load_catalogue(tmp_path).resolve("Aerial").agents
    assert first.budget == {"fps": 4, "max_frames": 8, "total_pixels": 784_000}
    assert last.budget == {"fps": 1, "total_pixels": 784_000}


def test_a_changed_budget_changes_the_digest(tmp_path: Path) -> None:
    seen = set()
    for text in ("", "budget: {fps: 1}\n", "budget: {fps: 2}\n"):
        (tmp_path / "aerial.yaml").write_text(MINIMAL + text)
        seen.add(load_catalogue(tmp_path).resolve("Aerial").digest)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("budget: {frames: 9}\n", "budget: unknown key 'frames'; remove it or use one of: min_pixels"),
        ("  judge: {budget: {pixels: 9}}\n", "agents.judge.budget: unknown key 'pixels'"),
        ("budget: {fps: 0}\n", "budget.fps: Input should be greater than 0"),
        ("budget: {max_frames: 1}\n", "budget.max_frames: "),
        ("budget: {total_pixels: 100}\n", "budget.total_pixels: "),
        ("budget: {window_frames: 3}\n", "budget.window_frames: "),
        ("budget: [fps]\n", "budget: "),
    ],
)
def test_a_malformed_budget_is_refused_by_file_and_key(tmp_path: Path, text: str, fault: str) -> None:
    message = refusal(tmp_path, MINIMAL + text)
    assert message.startswith(f"{tmp_path / 'aerial.yaml'}: {fault}")


@pytest.mark.parametrize(
    ("agent", "fault"),
    [
        (
            "{stage: perceive, prompt: Look., budget: {min_frames: 9, max_frames: 8}}",
            "budget: min_frames 9 is above max_frames 8",
        ),
        ("{stage: perceive, prompt: Look., windows: true}", "prompt: lacks $window"),
        ("{stage: perceive, prompt: Look at $window.}", "prompt: unknown placeholder $window"),
        ("{stage: perceive, prompt: $window, windows: true, media: false}", "windows: for an agent of stage"),
        ("{stage: reason, prompt: $window, windows: true}", "windows: for an agent of stage perceive"),
    ],
)
def test_windows_and_budgets_that_make_no_sense_are_refused(tmp_path: Path, agent: str, fault: str) -> None:
    text = MINIMAL.replace("  general_summary:", f"  late: {agent}\n  general_summary:")
    assert fault in refusal(tmp_path, text)


def test_only_the_video_agent_is_asked_window_by_window(packaged: Catalogue) -> None:
    windowed = [agent.name for domain in packaged.domains for agent in domain.agents if agent.windows]
    assert windowed == ["video"]


def test_a_date_in_a_file_is_only_text(tmp_path: Path) -> None:
    class Made(Keys):
        on: str

    (tmp_path / "made.yaml").write_text('"on": 2026-13-01\n')
    assert read_yaml(tmp_path / "made.yaml", Made, UserError).on == "2026-13-01"


def test_each_limit_leaves_room_for_the_words_that_the_prompt_allows(packaged: Catalogue) -> None:
    """A word takes two and a half tokens at the most in common languages, quotes and numbers among them."""
    for domain in packaged.domains:
        for agent in domain.agents:
            if words := re.search(r"at most (\d+) words", agent.prompt):
                assert agent.sampling.max_tokens >= 2.5 * int(words[1]), (domain.name, agent.name)


def test_fast_is_one_call_and_the_judges_of_each_domain(packaged: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "aerial.yaml").write_text(MINIMAL)
    fast = load_workflow("fast", tmp_path)

    assert load_workflow("standard").domains == packaged.domains
    assert [domain.name for domain in fast.domains] == [*(each.name for each in packaged.domains), "Aerial"]
    for domain in packaged.domains:
        captioner, *judges = fast.resolve(domain.name).agents
        assert captioner.name == ("fast_video_caption" if domain.name.startswith("Video") else "fast_caption")
        assert (captioner.sees, captioner.media) == ((), True)
        assert [judge.name for judge in judges] == [each.name for each in domain.agents_of(Stage.SCORE)]
        assert all(judge.sees == (captioner.name,) for judge in judges)
    assert fast.stages == {Stage.ROUTE, Stage.SUMMARIZE, Stage.SCORE}
    assert [agent.name for agent in fast.resolve("Aerial").agents] == ["fast_caption"]


TAGGER = (
    MINIMAL
    + """\
  tagger:
    stage: summarize
    prompt: List what is there.
    answer: json
    schema: SCHEMA
"""
)
COLOURS = "{type: object, properties: {colours: {type: array, items: {type: string}}}}"


def test_a_schema_asks_for_all_of_its_parts_and_no_others(tmp_path: Path) -> None:
    schema = (
        "{type: object, properties: {a: {type: object, properties: {b: {enum: [1]}}}, c: {type: string}}}"
    )
    (tmp_path / "aerial.yaml").write_text(TAGGER.replace("SCHEMA", schema))

    agent = load_catalogue(tmp_path).resolve("Aerial").captioner

    assert (agent.name, agent.answer) == ("tagger", "json")
    assert agent.schema == {
        "type": "object",
        "properties": {
            "a": {
                "type": "object",
                "properties": {"b": {"enum": [1]}},
                "required": ["b"],
                "additionalProperties": False,
            },
            "c": {"type": "string"},
        },
        "required": ["a", "c"],
        "additionalProperties": False,
    }


def test_a_schema_that_says_what_is_required_is_left_so(tmp_path: Path) -> None:
    schema = COLOURS[:-1] + ", required: [], additionalProperties: true}"
    (tmp_path / "aerial.yaml").write_text(TAGGER.replace("SCHEMA", schema))

    found = load_catalogue(tmp_path).resolve("Aerial").captioner.schema or {}

    assert (found["required"], found["additionalProperties"]) == ([], True)


def test_a_changed_schema_changes_the_digest(tmp_path: Path) -> None:
    found = set()
    for schema in (COLOURS, COLOURS.replace("string", "integer")):
        (tmp_path / "aerial.yaml").write_text(TAGGER.replace("SCHEMA", schema))
        found.add(load_catalogue(tmp_path).resolve("Aerial").captioner.digest)
    assert len(found) == 2


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        (COLOURS.replace("string", "strng"), "schema.properties.colours.items.type: 'strng' is not valid"),
        ("{type: array, items: {type: string}}", "schema: an answer is an object with named parts"),
        ("{type: object}", "schema: an answer is an object with named parts"),
        (
            COLOURS.replace("{type: string}", "{$ref: 'https://example.com/colour'}"),
            "schema.properties.colours.items.$ref: 'https://example.com/colour' is not in this schema",
        ),
        (COLOURS.replace("string", "string, maxLenght: 9"), "items.maxLenght: is no keyword of JSON Schema"),
        (COLOURS.replace("string", "string, maxLength: -4, minLength: a"), "'a' is not of type 'integer'"),
        ("[a]", "agents.tagger.schema: Input should be a valid dictionary"),
    ],
)
def test_a_schema_that_is_none_is_refused_with_the_place(tmp_path: Path, schema: str, fault: str) -> None:
    said = refusal(tmp_path, TAGGER.replace("SCHEMA", schema))
    assert said.startswith(f"{tmp_path / 'aerial.yaml'}: agents.tagger")
    assert fault in said


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            TAGGER.replace("    schema: SCHEMA\n", ""),
            "agents.tagger: schema: an agent with `answer: json` needs one",
        ),
        (TAGGER.replace("json", "text").replace("SCHEMA", COLOURS), "no other may have any"),
        (
            TAGGER.replace("json", "letter").replace("SCHEMA", COLOURS),
            "answer: stage summarize needs text or json",
        ),
    ],
)
def test_an_answer_that_does_not_fit_its_schema_or_stage_is_refused(
    tmp_path: Path, text: str, fault: str
) -> None:
    assert fault in refusal(tmp_path, text)

"""The report says what the history says, in one page that needs nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedmed_common.errors import CheckpointError, ConfigError
from fedmed_common.metrics import Mean, Metrics, class_mean
from fedmed_common.wire import Facts, Reply
from fedmed_server.history import RoundDone, RunEnded, SiteResult, append, read
from fedmed_server.report import Figure, artifacts, effort, write_report
from fedmed_server.report import page as pages
from fedmed_server.report.comparison import compare
from fedmed_server.report.source import merged, read_run, shareable_experiment
from fedmed_server.report.tables import class_rows, headline, scores

MakeRun = Callable[..., Any]
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c626001000000ffff03000006000557bfabd40000000049454e44ae426082"
)
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks the nesting and keeps tags, texts and what is loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data"}]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_page_is_whole_and_loads_nothing_from_elsewhere(make_run: MakeRun) -> None:
    run = make_run().all()
    write_report(run, figures=[Figure(title="Patient 1", caption="liver 0.91", png=PNG)])
    page = page_of(run)
    assert {"table", "caption", "svg", "img", "details"} <= set(page.tags)
    assert all(one.startswith(("#", "data:image/png;base64,")) for one in page.loaded)
    assert "script" not in page.tags
    assert "@import" not in (run / "report.html").read_text(encoding="utf-8")


def test_same_history_same_bytes(make_run: MakeRun) -> None:
    run = make_run().all()
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert artifacts(run, shareable=True) == artifacts(run, shareable=True)


def test_headline_is_the_mean_over_classes_with_enough_test_patients(make_run: MakeRun) -> None:
    run = make_run().all()
    ended = [record for record in read(run / "history.jsonl") if isinstance(record, RunEnded)][-1]
    metrics = merged(ended.test["best"])
    enough = {n: m for n, m in metrics.items() if n.startswith("dice/") and m.weight >= 5}
    few = {n.removeprefix("dice/") for n, m in metrics.items() if n.startswith("dice/") and m.weight < 5}
    assert few
    page = page_of(run)
    assert f"{class_mean(enough, 'dice'):.3f}" in page.text
    patients = sum(result.patients for result in ended.test["best"])
    assert f"{patients} held-out test patients" in page.text
    assert f"{len(enough)} of 10 classes" in page.text
    text = page.text[page.text.index("Where the rare classes stand") :]
    assert all(f"{name}: Dice" in text for name in few)


def test_patients_of_sites_that_did_not_answer_are_not_counted(make_run: MakeRun) -> None:
    made = make_run(rounds=1, late=())
    made.start()
    made.round(1)
    ok = SiteResult(site="north", patients=20, metrics={"dice/liver": (18.0, 20.0)})
    late = SiteResult(
        site="east", outcome="late", code="deadline", patients=50, metrics={"dice/liver": (5.0, 50.0)}
    )
    append(
        made.history,
        RunEnded(time=made.time(2), status="degraded: east", best_round=1, test={"best": (ok, late)}),
    )
    run = read_run(made.folder)
    measured = scores(run)
    assert measured is not None
    assert measured.patients == 20
    assert headline(class_rows(run, measured)).value == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("status", "word", "said"),
    [
        ("completed", "completed", "Every site answered every round."),
        ("degraded: west missed round 5", "degraded", "not every site answered"),
        ("failed: round 3: 1 of 4 sites gave a usable update", "failed", "1 of 4 sites gave"),
        ("interrupted", "interrupted", "can be resumed"),
        ("something new", "something new", ""),
    ],
)
def test_state_is_said_as_it_is(make_run: MakeRun, status: str, word: str, said: str) -> None:
    page = page_of(make_run(rounds=2, late=(), status=status).all())
    assert f" {word} " in page.text
    assert said in page.text


def test_run_without_an_end_shows_validation_and_says_so(make_run: MakeRun) -> None:
    made = make_run(late=())
    made.start()
    made.round(1)
    made.round(2)
    page = page_of(made.folder)
    assert "not ended" in page.text
    assert "validation patients, as the run has no test yet" in page.text
    assert "held-out test" not in page.text


@pytest.mark.parametrize("lines", [0, 1])
def test_run_that_has_hardly_begun_has_a_page(make_run: MakeRun, lines: int) -> None:
    made = make_run()
    made.history.touch()
    if lines:
        made.start()
    assert "Nothing has been measured yet" in page_of(made.folder).text


def test_run_that_failed_before_the_roll_call_has_a_page(make_run: MakeRun) -> None:
    made = make_run()
    append(made.history, RunEnded(time=made.time(0), status="failed: no site", best_round=0))
    assert "no site" in page_of(made.folder).text


def test_later_line_of_a_round_wins_and_a_resume_forgets_what_came_after_it(make_run: MakeRun) -> None:
    made = make_run(rounds=4)
    made.start()
    for number in (1, 2, 3):
        made.round(number)
    append(made.history, RunEnded(time=made.time(3), status="interrupted", best_round=2))
    made.start(resumed_from_round=2)
    resumed = read_run(made.folder)
    assert [done.round for done in resumed.rounds] == [1, 2]
    assert resumed.ended is None
    again = next(
        record for record in read(made.history) if isinstance(record, RoundDone) and record.round == 2
    )
    append(made.history, again.model_copy(update={"criterion": 0.123}))
    assert [done.criterion for done in read_run(made.folder).rounds][-1] == 0.123
    assert "resumed 1 \N{MULTIPLICATION SIGN}" in page_of(made.folder).text


def test_a_sites_time_is_that_of_its_orders_and_waiting_a_share_of_training(make_run: MakeRun) -> None:
    made = make_run(rounds=2, late=(2,))
    made.all()
    by_name = {cost.name: cost for cost in effort.costs(read_run(made.folder))}
    first, last = by_name[made.facts[0].name], by_name[made.facts[-1].name]
    assert first.seconds["train"] == pytest.approx(2 * 5.9)
    assert first.waited == pytest.approx(0.4 / 5.1)
    assert last.seconds["train"] == pytest.approx(5.9 + len(made.facts) - 1)
    page = page_of(made.folder).text
    assert "of it waiting" in page
    assert "8 %" in page
    private = make_run("private", private=True)
    private.all()
    assert {cost.waited for cost in effort.costs(read_run(private.folder))} == {None}


def test_late_site_and_missing_round_are_listed(make_run: MakeRun) -> None:
    made = make_run(rounds=6, late=(5,))
    made.start()
    for number in (1, 2, 3, 5, 6):
        made.round(number)
    made.end()
    page = page_of(made.folder)
    assert "no record of round 4" in page.text
    assert "1 order without a usable answer" in page.text
    assert "0005a7" in page.text


def test_not_annotated_vacant_and_hidden_counts_are_told_apart(make_run: MakeRun) -> None:
    made = make_run(rounds=1, late=())
    text = page_of(made.all()).text
    section = text[text.index("How often each class occurs") : text.index("Who took part")]
    values = [count for site in made.facts for count in site.presence.values()]
    assert section.count("fewcount hidden") == sum(value < 0 for value in values) > 0
    assert section.count("0vacant") == sum(value == 0 for value in values) > 0
    assert section.count("not annotated") - 1 == 40 - len(values) > 0


def test_names_from_sites_and_texts_of_users_are_escaped(make_run: MakeRun) -> None:
    evil = "<script>alert(1)</script>\"' onmouseover=x"
    made = make_run(rounds=2, late=(1,), sites=("north", "east", evil, f"{evil}2"))
    run = made.all()
    (run / "experiment.toml").write_text(
        (run / "experiment.toml").read_text() + f"# {evil}\n", encoding="utf-8"
    )
    append(made.history, RunEnded(time=made.time(9), status=f"failed: {evil}", best_round=1))
    baselines_beside(run, federated={"dice/liver": (9.0, 10.0)}, **{evil: {"dice/liver": (8.0, 10.0)}})
    write_report(run, figures=[Figure(title=evil, caption=evil, png=PNG)])
    page = page_of(run)
    assert "script" not in page.tags
    assert evil in page.text
    assert f"federated{evil}" in page.text
    assert "<script" not in "".join(pages.chart_files(read_run(run)).values())


def test_many_sites_classes_and_rounds_stay_a_page_of_moderate_size(make_run: MakeRun) -> None:
    shares = {f"class_{index:03d}": 0.5 for index in range(60)}
    made = make_run(rounds=80, late=(), sites=tuple(f"site-{i:03d}" for i in range(45)), shares=shares)
    made.start()
    made.round(1)
    template = list(read(made.history))[-1]
    assert isinstance(template, RoundDone)
    small = template.model_copy(update={"evaluation": template.evaluation[:3]})
    for number in range(2, 81):
        append(made.history, small.model_copy(update={"round": number}))
    made.end("completed")
    page = page_of(made.folder)
    assert (made.folder / "report.html").stat().st_size < 6_000_000
    assert (
        "Of 45 sites these are shown one by one: those with the lowest, the middle and the highest"
        in page.text
    )
    assert "32 more sites" in page.text
    lines = (made.folder / "sites.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["site", *(f"site-{i:03d}" for i in range(45))]


def test_sites_stand_in_the_order_that_people_count_in(make_run: MakeRun) -> None:
    run = make_run(rounds=1, late=(), sites=("site-10", "site-2", "alpha", "1")).all()
    assert read_run(run).sites == ("1", "alpha", "site-2", "site-10")


def test_one_class_and_one_round_are_enough(make_run: MakeRun) -> None:
    page = page_of(make_run(rounds=1, late=(), shares={"nucleus": 1.0}).all())
    assert "The experiment has one class, nucleus." in page.text
    assert "Validation Dice by class" not in page.text


def baselines_beside(run: Path, **models: dict[str, tuple[float, float]]) -> None:
    (run / "comparison.json").write_text(json.dumps(models), encoding="utf-8")


def test_baselines_stand_beside_the_run_class_by_class(make_run: MakeRun) -> None:
    run = make_run(rounds=3, late=(), shares={"liver": 1.0, "spleen": 0.9, "cyst": 0.1}).all()
    baselines_beside(
        run,
        federated={"dice/liver": (16.0, 20.0), "dice/spleen": (5.0, 10.0), "dice/cyst": (0.5, 2.0)},
        pooled={"dice/liver": (18.0, 20.0), "dice/spleen": (4.0, 10.0), "dice/cyst": (1.5, 2.0)},
        local={"dice/liver": (12.0, 20.0), "dice/spleen": (4.0, 10.0)},
    )
    page = page_of(run)
    text = page.text[page.text.index("Beside its baselines") : page.text.index("How training went")]
    assert "3 rounds of 20 optimizer steps" in text
    assert "pooled: one model trained on the training patients of all sites in one place" in text
    assert "local: at each site a model of its own" in text
    rows = [
        "liver0.800 n = 20 0.900 n = 20 0.600 n = 20",
        "spleen0.500 n = 10 0.400 n = 10 0.400 n = 10",
        "Mean over 2 of 3 classes0.650 0.650 0.500",
        "no basis for a claim",
        "cyst0.250 n = 2 0.750 n = 2 \N{EN DASH}",
    ]
    assert rows == sorted(rows, key=text.index)
    assert "#baselines" in page.loaded


def test_bold_is_the_highest_as_printed_among_results_on_the_same_patients() -> None:
    def means(**dice: tuple[float, float]) -> Metrics:
        return {f"dice/{name}": Mean(*pair) for name, pair in dice.items()}

    compared = compare(
        {
            "federated": means(a=(8.0001, 10.0), b=(5.0, 10.0), few=(4.0, 4.0), other=(9.0, 10.0)),
            "pooled": means(a=(8.0, 10.0), b=(6.0, 10.0), few=(3.0, 4.0), other=(7.0, 9.0)),
            "local": means(a=(7.0, 10.0), b=(6.0, 10.0), few=(2.0, 4.0), other=(7.0, 9.0)),
        },
        ["a", "b", "few", "other", "nowhere"],
    )
    assert compared is not None
    assert [row.name for row in compared.counted] == ["a", "b"]
    best = {row.name: [score.best for score in row.scores] for row in compared.classes}
    assert best == {
        "a": [True, True, False],
        "b": [False, True, True],
        **dict.fromkeys(["few", "other", "nowhere"], [False] * 3),
    }
    assert [score.value for score in compared.means] == pytest.approx([0.65, 0.7, 0.65], abs=1e-4)
    assert [score.best for score in compared.means] == [False, True, False]


def test_run_without_baselines_does_not_speak_of_them(make_run: MakeRun) -> None:
    run = make_run(rounds=1).all()
    page = page_of(run)
    assert "Beside its baselines" not in page.text
    assert "#baselines" not in page.loaded
    baselines_beside(run)
    assert "Beside its baselines" not in page_of(run).text


def test_comparison_in_which_nothing_was_measured_has_its_section(make_run: MakeRun) -> None:
    run = make_run(rounds=1).all()
    baselines_beside(run, federated={"dice/liver": (math.nan, 9.0)}, pooled={"dice/liver": (0.0, 0.0)})
    assert "Beside its baselines" in page_of(run).text
    assert "Mean over" not in page_of(run).text.partition("Beside its baselines")[2]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"pooled": {"dice/liver": [1.0]}}'])
def test_damaged_comparison_is_refused_by_name(make_run: MakeRun, content: bytes) -> None:
    run = make_run(rounds=1).all()
    (run / "comparison.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"comparison\.json: damaged"):
        write_report(run)


def test_figures_stay_in_the_page_when_it_is_drawn_again(make_run: MakeRun) -> None:
    run = make_run(rounds=1).all()
    first = write_report(run, figures=[Figure(title="Patient 1", caption="liver 0.91", png=PNG)]).read_bytes()
    assert write_report(run).read_bytes() == first
    assert b'alt="Patient 1: liver 0.91"' in first


def test_what_may_leave_names_no_folder_and_shows_no_patient(make_run: MakeRun) -> None:
    made = make_run(rounds=1)
    run = made.all()
    figures = [
        Figure(title="Patient", caption="", png=PNG),
        Figure(title="Chart", caption="", png=PNG, of_patients=False),
    ]
    write_report(run, figures=figures)
    kept = artifacts(run, shareable=False)
    shared = artifacts(run, shareable=True)
    assert str(run.parent).encode() in kept["experiment.toml"]
    assert b"/home/somebody" in kept["report.html"]
    for content in shared.values():
        assert b"/home/" not in content
        assert str(run.parent).encode() not in content
    assert b"# per round" in shared["experiment.toml"]
    assert b"fedmed simulate abdomen.toml --seed 7" in shared["report.html"]
    assert sorted(name for name in shared if name.endswith(".png")) == ["figures/001.png"]
    assert len([name for name in kept if name.endswith(".png")]) == 2
    assert shared["figures/training_loss.svg"].startswith(b"<svg")


@pytest.mark.parametrize(
    "tables",
    [
        '\n[simulation]\nfederation = "/secret"\n\n[simulation.partition]\nsites = 3\n\n[tracking]\nuri = "http://u:secret@x"\n',
        '\n[ simulation ]\nfederation = "/secret"\n["tracking"]\nuri = "secret"\n',
        '\n[train]\nsteps = 3\n[[simulation.sites]]\nname = "secret"\n'
        '[simulation.sites.data]\nroot = "/secret"\n',
    ],
)
def test_experiment_that_may_leave_is_the_file_without_local_tables(make_run: MakeRun, tables: str) -> None:
    made = make_run(rounds=1)
    file = made.folder / "experiment.toml"
    file.write_text(file.read_text().partition("[train]")[0] + tables, encoding="utf-8")
    made.start()
    shared = shareable_experiment(read_run(made.folder))
    assert "secret" not in shared
    assert shared.startswith("# four hospitals")


def test_experiment_that_cannot_be_cut_line_by_line_is_written_anew(make_run: MakeRun) -> None:
    made = make_run(rounds=1)
    file = made.folder / "experiment.toml"
    text = file.read_text().partition("[simulation]")[0]
    file.write_text(f'tracking.uri = """\nhttp://secret\n"""\n{text}', encoding="utf-8")
    made.start()
    shared = shareable_experiment(read_run(made.folder))
    assert "secret" not in shared
    assert json.loads(shared)["name"] == "abdomen"


def test_cause_of_a_failure_stays_here(make_run: MakeRun) -> None:
    run = make_run(rounds=1, status="failed: /mnt/secret is not a folder").all()
    assert b"/mnt/secret" in write_report(run).read_bytes()
    assert all(b"secret" not in content for content in artifacts(run, shareable=True).values())


@pytest.mark.parametrize(
    ("command", "shared"),
    [
        ("fedmed simulate /home/a b/x.toml", "fedmed simulate a x.toml"),
        ("fedmed simulate '/home/a b/x.toml' --runs=/data/runs/", "fedmed simulate x.toml --runs=runs"),
        ("/usr/bin/fedmed simulate ~/x.toml 'unclosed", "fedmed simulate x.toml"),
    ],
)
def test_command_that_may_leave_has_no_folder(command: str, shared: str) -> None:
    assert pages._without_folders(command).startswith(shared)


def test_privacy_note_covers_every_field_of_the_wire() -> None:
    for told, declared in ((pages.FACTS_TOLD, Facts), (pages.REPLY_TOLD, Reply)):
        assert sorted(name for names in told for name in names) == sorted(
            f.name for f in dataclasses.fields(declared)
        )


def test_folder_that_is_no_run_is_refused_with_what_it_lacks(tmp_path: Path, make_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match=r"experiment\.toml"):
        write_report(tmp_path)
    with pytest.raises(ConfigError, match=r"history\.jsonl"):
        write_report(make_run().folder)


def test_damaged_history_is_refused_by_name(make_run: MakeRun) -> None:
    made = make_run()
    made.history.write_bytes(b'{"kind": "started"}\n')
    with pytest.raises(CheckpointError, match=r"history\.jsonl"):
        write_report(made.folder)


def test_unset_variable_of_the_simulation_does_not_hinder_the_report(make_run: MakeRun) -> None:
    made = make_run(rounds=1)
    file = made.folder / "experiment.toml"
    file.write_text(re.sub(r'federation = ".*"', 'federation = "${NO_SUCH_FOLDER}/x"', file.read_text()))
    assert page_of(made.all()).text


def test_a_private_run_says_what_it_cost_each_site_s_patients(make_run: MakeRun) -> None:
    """The largest is the run's, as a patient is at one site; who missed the last round has spent less."""
    run = make_run(rounds=3, late=(3,), private=True).all()
    spent = {"east": "1.625", "north": "1.500", "south": "1.750", "west": "1.375", "the run": "1.750"}
    page, html = page_of(run), (run / "report.html").read_text(encoding="utf-8")
    for name, epsilon in spent.items():
        assert f'<th scope="row">{name}</th><td class="num">{epsilon}</td><td class="num">8</td>' in html
    assert "1.75 of 8" in page.text
    assert "neither differential privacy" not in page.text

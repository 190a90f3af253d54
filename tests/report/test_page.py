"""The HTML page, its figures and the SVG picture of synthetic runs."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from synthetic_run import HOSTILE, as_perplexity, complete, run_of, synthetic_run

from kdnas.cli._terminal import printed
from kdnas.core.fidelity import Fidelity
from kdnas.core.objective import ACCURACY, Constraint
from kdnas.errors import RunFolderError
from kdnas.plan.training_folder import full_trainings
from kdnas.record.front import front, hypervolume, recommended
from kdnas.report.figures import blend, cost_names, hypervolume_figure, is_log, round_ticks, score_figure, staircase
from kdnas.report.page import page, write_report
from kdnas.report.parallel import parallel_figure
from kdnas.report.picture import front_svg
from kdnas.report.searched import importance
from kdnas.report.summary import (
    against_teacher,
    costs,
    failures,
    goals,
    highlights,
    near_chance,
    trust,
    unreached_rung,
    what_was_searched,
)
from kdnas.report.tables import front_table, full_trainings_document, full_trainings_table, trials_table
from kdnas.report.wording import shown_interval
from kdnas.study.config import Rung


class Reader(HTMLParser):
    """Collects start tags, their attributes and the text of table cells."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def full():
    return synthetic_run()


@pytest.fixture(scope="module")
def document(full):
    return page(full)


def data_of(document: str) -> dict[str, dict]:
    found = re.findall(r'<script type="application/json" id="data-([^"]+)">(.*?)</script>', document, re.S)
    return {name: json.loads(text) for name, text in found}


def test_the_page_refers_to_nothing_outside_itself(document):
    reader = Reader(document)
    for tag, attributes in reader.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        assert not {"src", "href", "srcset", "action", "data"} & set(attributes), (tag, attributes)
    (policy,) = [a["content"] for tag, a in reader.tags if tag == "meta" and a.get("http-equiv")]
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert "http" not in policy
    assert document.count("plotly.js v") == 1


def test_hostile_strings_stay_text(document):
    assert HOSTILE not in document
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in document
    assert "onerror" not in {name for _, attributes in Reader(document).tags for name in attributes}


def test_every_figure_marks_the_teacher(full, document):
    data = data_of(document)
    assert set(data) == {
        "accuracy-macs", "accuracy-latency_ms", "accuracy-params", "parallel", "hypervolume-trials", "hypervolume-time",
        "importance", "time",
    }  # fmt: skip
    for name in set(data) - {"importance", "time"}:
        assert any(str(trace.get("name", "")).startswith("teacher") for trace in data[name]["data"]), name
    assert "teacher (98.61 %) takes no part" in document


def test_tables_hold_the_numbers_of_the_csv_files(full, document):
    cells = re.findall(r'<td data-value="([^"]*)">', document)
    for table in (front_table(full), trials_table(full)):
        for column in ("accuracy", "macs", "latency_ms"):
            for value in table[column].dropna():
                assert repr(getattr(value, "item", lambda value=value: value)()) in cells, (column, value)


def test_tables_begin_with_score_and_costs_and_show_per_cent(full, document):
    front_table_, trials_table_ = re.findall(r'<table class="sortable"><thead>(.*?)</thead>', document)[-2:]
    heads = [re.findall(r'<button type="button">(.*?)</button>', table) for table in (front_table_, trials_table_)]
    assert heads[0][:6] == [
        "student", "accuracy (%), 95 % interval", "test accuracy (%), 95 % interval", "MACs", "parameters",
        "latency (ms), spread in brackets",
    ]  # fmt: skip
    assert heads[1][:5] == ["trial", "student", "accuracy (%)", "MACs", "parameters"]
    assert not re.search(r">0\.9\d+<", document)
    member = front(full)[0]
    shown = shown_interval(ACCURACY, member.values["accuracy"], member.score_ci95).removesuffix(" %")
    assert f'data-value="{member.values["accuracy"]!r}">{shown}</td>' in document
    assert document.count('aria-sort="none"') == document.count("<th ")
    assert "hold the same numbers as fractions" in document
    assert "the table scrolls sideways" in document


def test_no_interval_leaves_nothing_to_everything():
    trials = [complete(0, 0.5, 50, repeats=[0.99, 1.0, 0.9]), complete(1, 0.3, 5, repeats=[0.0, 0.02, 0.1])]
    run = run_of(trials)
    bars = next(t for t in score_figure(run, "macs").drawing.data if t.name == "front, retrained (95 %)").error_y
    means = [member.values["accuracy"] for member in front(run)]
    for mean, up, down in zip(means, bars.array, bars.arrayminus, strict=True):
        assert mean + up <= 1.0
        assert mean - down >= 0.0
    assert "96.33 % [82.65, 100]" in page(run)
    heights = [float(y) for y in re.findall(r'y[12]="([-\d.]+)"', front_svg(run))]
    assert min(heights) >= 0


def test_constraints_and_quantities_are_told_in_words(full):
    run = replace(full, constraints=(*full.constraints, Constraint("latency_ms", "<=", 2.5)))
    refused = replace(full.trials[7], reason="breaks macs<=6e+06 (macs is 6.17e+06)")
    document = page(replace(run, trials=(*full.trials[:7], refused, *full.trials[8:])))
    text = document[: document.index('<script type="application/json"')]
    assert "with at most 6 M MACs and at most 2.5 ms latency" in text
    for spelling in ("6e+06", "macs<=", "macs&lt;=", "latency_ms<", ">latency_ms", "± 95 %"):
        assert spelling not in text, spelling
    assert "2 × infeasible</b>: breaks at most 6 M MACs <small>(trials 7, 11)" in text


def test_a_space_of_the_studys_own_is_no_file_name(full):
    config = full.config.model_copy(update={"space": "../somewhere/narrow.yaml"})
    of_file = replace(full, config=config)
    assert what_was_searched(of_file).startswith("Residual networks of the space in narrow.yaml")
    own = replace(full.lock, space=replace(full.lock.space, family="perceptrons"))
    assert what_was_searched(replace(of_file, lock=own)).startswith("Networks of perceptrons of the space in narrow")


def test_full_trainings_stand_in_the_report(full, tmp_path):
    trial = front(full)[0].trial
    folder = tmp_path / "training" / trial.arch.arch_id
    folder.mkdir(parents=True)
    (folder / "training.lock.yaml").write_text("name: it\n")
    run = replace(full, folder=tmp_path)
    assert "is not finished (epoch 0)" in page(run)
    (folder / "result.json").write_text(json.dumps({
        "arch_id": trial.arch.arch_id, "epochs": 200, "accuracy": 0.9712, "test_accuracy": 0.9634,
        "train_seconds": 90.0, "files": ["student.py"]}))  # fmt: skip
    document = page(run)
    assert "<h2>Full trainings</h2>" in document
    assert 'data-value="0.9634">96.34 %</td>' in document
    (plain,) = full_trainings_document(run)
    assert (plain["arch_id"], plain["epochs"], plain["test_accuracy"]) == (trial.arch.arch_id, 200, 0.9634)
    console = Console(file=io.StringIO(), width=100)
    console.print(printed(full_trainings_table(run, full_trainings(tmp_path)[0])))
    assert all(text in console.file.getvalue() for text in (trial.arch.arch_id, "96.34 %", "97.12 %", "200"))
    (trace,) = [t for t in score_figure(run, "macs").drawing.data if t.name == "fully trained"]
    assert (trace.x[0], trace.y[0]) == (trial.values["macs"], 0.9712)
    (folder / "result.json").write_text("{")
    assert "is damaged" in page(run)


def test_score_figure_draws_front_intervals_and_refused_students(full):
    figure = score_figure(full, "macs").drawing
    traces = {trace.name: trace for trace in figure.data if trace.name}
    members = front(full)
    drawn = traces["front, retrained (95 %)"]
    assert list(drawn.y) == [member.values["accuracy"] for member in members]
    assert list(drawn.error_y.array) == [member.score_ci95 for member in members]
    chosen, ring = recommended(full).member, traces["recommended"]
    assert (ring.x[0], ring.y[0]) == (chosen.values["macs"], chosen.values["accuracy"])
    assert len(traces["refused untrained"].x) == 2
    assert traces["teacher"].x[0] == full.teacher.values["macs"]
    assert figure.layout.xaxis.type == "log"
    assert score_figure(full, "latency_ms").drawing.layout.xaxis.type == "linear"


def test_a_front_that_only_guesses_is_said_to(full):
    assert near_chance(full) == ""
    best = max(member.values["accuracy"] for member in front(full))
    poor = replace(full, reference_point={**full.reference_point, "accuracy": best - 0.01})
    printed = near_chance(poor)
    assert printed.startswith(f"Hardly better than guessing, which has {100 * (best - 0.01):.2f} %: ")
    assert all(member.trial.arch.arch_id[:4] in printed for member in front(poor))
    assert printed.split(":")[0] in page(poor)


def test_a_highest_rung_that_nobody_reached_is_said(full):
    top = full.config.fidelities[-1]
    assert unreached_rung(full) == ""  # no rungs
    rungs = (Rung(epochs=top.epochs), Rung(epochs=top.epochs + 1))
    training = full.config.training.model_copy(update={"epochs": top.epochs + 1})
    config = full.config.model_copy(update={"rungs": rungs, "training": training})
    short = replace(full, config=config)
    assert unreached_rung(short).startswith(f"No student was scored {config.fidelities[-1].reached}")
    assert unreached_rung(short) in trust(short)
    reached = replace(full.trials[0], state="complete", fidelity=config.fidelities[-1])
    assert unreached_rung(replace(short, trials=(*full.trials, reached))) == ""


def test_the_staircase_rises(full):
    steps = staircase(full, front(full), "latency_ms")
    latencies, accuracies = zip(*[(m.values["latency_ms"], m.values["accuracy"]) for m in steps], strict=True)
    assert list(latencies) == sorted(latencies)
    assert list(accuracies) == sorted(accuracies)
    assert 1 < len(steps) < len(front(full))


def test_a_teacher_without_that_cost_is_a_line(full):
    run = replace(full, teacher=replace(full.teacher, values={}))
    layout = score_figure(run, "macs").drawing.layout
    assert any(shape.y0 == run.teacher.score for shape in layout.shapes)
    assert "★ teacher" in {annotation.text for annotation in layout.annotations}
    assert "stroke-dasharray" in front_svg(run)


def test_hypervolume_figure_states_its_reference_point(full):
    figure = hypervolume_figure(full, "time")
    assert "accuracy 10.00 %, MACs 6 M, latency 4 ms" in figure.caption
    assert list(figure.drawing.data[0].y) == sorted(figure.drawing.data[0].y)


@pytest.mark.parametrize("over", ["trials", "time"])
def test_with_rungs_every_score_is_a_step_of_the_line_of_its_rung(over):
    brief, full = [Fidelity(1), Fidelity(6)]
    trials = [
        replace(complete(n, 0.5 + 0.01 * n, 60.0 - n), fidelity=full if n % 10 == 9 else brief) for n in range(30)
    ]
    run = run_of(trials)
    figure = hypervolume_figure(run, over)
    lower, upper = figure.drawing.data
    assert [len(lower.x), len(upper.x)] == [30, 30]
    assert (lower.name, upper.name) == ("scores after 1 epoch", "scores after 6 epochs")
    assert "those after 6 epochs, of which the front was drawn" in figure.caption
    assert [n for n in range(1, 30) if upper.y[n] > upper.y[n - 1]] == [9, 19, 29]
    assert upper.y[0] == 0
    assert upper.y[-1] == pytest.approx(hypervolume(run))
    assert list(upper.x) == sorted(upper.x)


def test_cost_names_begin_with_macs_and_latency(full):
    assert cost_names(full) == ["macs", "latency_ms", "params"]


def test_importance_finds_the_choice_that_matters():
    rng = np.random.default_rng(0)
    trials = []
    for number in range(40):
        width, noise = int(rng.choice([8, 16, 32])), int(rng.integers(0, 4))
        trial = complete(number, 0.6 + width / 100 + 0.002 * noise, 10.0 + number)
        choices = {"width": width, "noise": noise, "constant": 3, **({"sometimes": noise} if width > 8 else {})}
        trials.append(replace(trial, arch=type(trial.arch).of("resnet", choices)))
    result = importance(run_of(trials))
    assert max(result.shares, key=result.shares.__getitem__) == "width"
    assert result.shares["width"] > 0.5
    assert "constant" not in result.shares
    assert sum(result.shares.values()) == pytest.approx(1.0)
    assert importance(run_of(trials)).shares == result.shares  # seeded


def test_importance_declines_where_nothing_can_be_said():
    assert "at least 10" in importance(run_of([complete(0, 0.5, 1)])).explanation
    same = [complete(number, 0.5, number + 1.0) for number in range(12)]
    assert importance(run_of(same)).shares == {}


def test_summary_compares_with_the_teacher_on_the_test_split():
    trial = complete(0, 0.5, 1e6, repeats=[0.96, 0.98])  # test accuracies 0.95 and 0.97
    run = run_of([trial])
    teacher = replace(synthetic_run().teacher, test_score=0.98, values={"macs": 12e6})
    run = replace(run, teacher=teacher)
    assert against_teacher(run, front(run)[0]) == "98.0 % of the teacher’s accuracy (test split) at 1/12 of its MACs."
    assert highlights(run)[0][0] == "Recommended: the student with the best accuracy"
    assert any("for these retrained students" in sentence for sentence in trust(run))


@pytest.mark.parametrize("retrained", [True, False])
def test_the_page_of_a_perplexity_speaks_of_no_accuracy(tmp_path, retrained):
    run = as_perplexity(synthetic_run(tmp_path, retrained=retrained), goals=["perplexity<=20"])
    for path in write_report(run):
        text = re.sub(r"<script>.*?</script>", "", path.read_text(), flags=re.S)  # plotly's own code
        assert "ccurac" not in text
    table = pd.read_csv(tmp_path / "front.csv")
    assert list(table.columns[:8]) == [
        "trial", "arch_id", "state", "fidelity_epochs", "perplexity", "perplexity_ci95", "macs", "params",
    ]  # fmt: skip
    assert {"test_perplexity", "test_perplexity_ci95", "search_perplexity"} <= set(table.columns)
    assert (table["perplexity"] > 12).all()
    text = (tmp_path / "report.html").read_text()
    assert "times the teacher’s perplexity" in text
    assert "Importance of each choice for perplexity" in text
    assert "student of the front reaches at most 20 perplexity" in " ".join([*trust(run), goals(run)])


def test_figures_of_a_perplexity_are_read_downwards():
    run = as_perplexity(synthetic_run())
    figure = score_figure(run, "macs")
    assert (figure.name, figure.title) == ("perplexity-macs", "Perplexity against MACs")
    axis = figure.drawing.layout.yaxis
    assert axis.title.text == "Validation perplexity"
    assert axis.tickformat is None
    steps = staircase(run, front(run), "macs")
    scores = [member.values["perplexity"] for member in steps]
    assert scores == sorted(scores, reverse=True)
    (bars,) = [trace.error_y for trace in figure.drawing.data if trace.name == "front, retrained (95 %)"]
    assert list(bars.array) == [member.score_ci95 for member in front(run)]
    ticks = next(trace for trace in figure.drawing.data if trace.name == "refused untrained")
    assert set(ticks.y) == {axis.range[1]}  # the worse end
    assert "A lower perplexity is better." in figure.caption
    teacher = next(trace for trace in figure.drawing.data if trace.name == "teacher")
    assert teacher.y[0] == run.teacher.score
    wide = replace(run, trials=(complete(90, 0.0, 1e6, perplexity=900.0), *run.trials))
    upright = score_figure(wide, "macs").drawing.layout.yaxis
    assert upright.type == "log"
    assert 10 ** upright.range[0] < 13
    assert 10 ** upright.range[1] > 900
    lines = [trace for trace in parallel_figure(run).drawing.data if trace.mode == "lines"]
    best = min((t for t in run.trials if t.state == "complete"), key=lambda trial: trial.values["perplexity"])
    (blue,) = [trace for trace in lines if trace.line.color == blend(1.0)]
    assert blue.hovertemplate.startswith(f"trial {best.number}")
    assert "Validation perplexity" in front_svg(run)


def test_summary_says_when_nothing_is_retrained(full):
    text = " ".join(trust(synthetic_run(retrained=False)))
    assert "Nothing is retrained yet" in text
    assert "287 images" in text
    assert "with 3 seeds" in " ".join(trust(full))


def test_costs_and_failures_are_grouped(full):
    assert failures(full)[0] == ("failed", "loss became NaN in epoch 1", [3, 9]) or failures(full)[0][0] == "infeasible"
    assert {len(numbers) for *_, numbers in failures(full)} == {1, 2}
    training = sum(trial.train_seconds for trial in full.trials)
    share = sum(trial.teacher_seconds for trial in full.trials) / training
    assert f"{100 * share:.0f} % of it the teacher’s" in dict(costs(full))["training in 40 trials"]


@pytest.mark.parametrize(
    ("run", "statement"),
    [
        (synthetic_run(trials=0, retrained=False), "No trial has been made yet."),
        (replace(synthetic_run(trials=0, retrained=False), teacher=None), "No student has been scored yet"),
        (
            run_of([replace(complete(0, 0.5, 1), state="failed", values={}, reason="broke")]),
            "No student has been scored yet",
        ),
        (run_of([complete(0, 0.5, 50)], constraints=["macs<=1"]), "meets every constraint"),
        (run_of([complete(0, 0.5, 50)]), "Needs at least 10 complete trials; there are 1."),
        (run_of([complete(0, 0.0, 0.0)]), "1 trial: 1 complete"),
    ],
)
def test_runs_with_little_in_them_still_give_a_page_that_says_so(run, statement, tmp_path):
    assert statement in page(run)
    ElementTree.fromstring(front_svg(run))
    assert {path.name for path in write_report(run, tmp_path)} == {
        "report.html",
        "front.csv",
        "trials.csv",
        "front.svg",
    }


def test_one_line_a_student_and_an_axis_a_choice(full):
    parallel = parallel_figure(full)
    lines = [trace for trace in parallel.drawing.data if trace.mode == "lines"]
    assert len(lines) == sum(trial.state == "complete" for trial in full.trials)
    axes = list(parallel.drawing.layout.xaxis.ticktext)
    assert axes[-3:] == ["accuracy", "MACs", "latency"]
    assert {"depth1", "skip", "width2"} <= set(axes)


def test_the_picture_is_an_svg_with_every_front_student(full):
    root = ElementTree.fromstring(front_svg(full))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    width, height = float(root.get("width")), float(root.get("height"))
    front_dots = [dot for dot in root.iter("{http://www.w3.org/2000/svg}circle") if dot.get("r") == "4.6"]
    assert len(front_dots) == len(front(full))
    for dot in root.iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 <= float(dot.get("cx")) <= width
        assert 0 <= float(dot.get("cy")) <= height
    hostile = replace(full, config=full.config.model_copy(update={"name": "a<b>&"}))
    assert "a&lt;b&gt;&amp;" in front_svg(hostile)


def test_ticks_are_round_and_inside():
    assert round_ticks(0.0, 1.0, log=False) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert round_ticks(3.0, 60.0, log=True) == pytest.approx([5, 10, 20, 50])
    assert is_log([1, 20])
    assert not is_log([1, 9])
    assert not is_log([0, 100])


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path):
    with pytest.raises(RunFolderError, match="cannot be written"):
        write_report(run_of([complete(0, 0.5, 50)]), tmp_path / "missing")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium to draw the page")
def test_a_browser_draws_every_figure_and_sorts_the_table(full, document, tmp_path):
    probe = (
        "<script>addEventListener('load',()=>{const table=document.querySelectorAll('table')[1];"
        "const heads=[...table.tHead.rows[0].cells],at=heads.findIndex(h=>h.textContent.startsWith('accuracy'));"
        "heads[at].querySelector('button').click();"
        "const c=[...table.tBodies[0].rows].map(r=>r.cells[at].dataset.value);"
        "document.title='drawn:'+document.querySelectorAll('.main-svg').length+' sorted:'+c[0]+' last:['+c.at(-1)+']"
        " '+heads[at].ariaSort+' '+heads[0].ariaSort+"
        "' width:'+(document.documentElement.scrollWidth<=innerWidth)})</script></body>"
    )
    (tmp_path / "page.html").write_text(document.replace("</body>", probe))
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--dump-dom", f"file://{tmp_path}/page.html"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    title = re.search(r"<title>(drawn:[^<]*)", done.stdout)
    assert title, done.stderr[-500:]
    lowest = min(trial.values["accuracy"] for trial in full.trials if trial.state == "complete")
    assert int(re.search(r"drawn:(\d+)", title[1])[1]) >= 7
    assert f"sorted:{lowest} last:[] ascending none width:true" in title[1]


def test_what_the_data_is_told_for_stands_among_the_reasons_to_doubt():
    run = synthetic_run()
    assert not any(sentence.startswith("The data:") for sentence in trust(run))
    data = replace(run.lock.data, notes=("3 test images are <training> images",))
    noted = replace(run, lock=replace(run.lock, data=data))
    assert "The data: 3 test images are <training> images." in trust(noted)
    assert "3 test images are &lt;training&gt; images" in page(noted)

"""Settings after the same time of training: steps by their cost, tables and differences of known results."""

import pytest

from alight.config.recipes import load_config
from alight.reporting.files import report_data
from alight.reporting.page import render_page
from alight.reporting.report import Report
from alight.studies import ablation
from alight.studies.costs import recorded_costs, step_at_equal_time, subject_of
from alight.studies.equal_time import equal_time_figures, equal_time_summary, equal_time_table
from alight.studies.grid import all_runs, shared_jobs
from alight.studies.results import LABELS, MEASURES, Results, columns

BEFORE = {"slow": "unchanged", "quick": "unchanged", "solver": "unchanged"}


@pytest.fixture
def results():
    """Three seeds; `slow` takes two and a half times as long as `unchanged`, `quick` half as long."""
    curves = {
        "unchanged": {100: 0.2, 200: 0.4, 300: 0.6},
        "slow": {100: 0.3, 120: 0.35, 200: 0.6, 300: 0.8},
        "quick": {100: 0.1, 200: 0.2, 300: 0.3},
        "solver": {100: 0.3, 200: 0.5, 300: 0.7},
    }
    seeds = {
        name: {seed: {step: value + seed / 100 for step, value in curve.items()} for seed in range(3)}
        for name, curve in curves.items()
    }
    return Results(
        (100, 200, 300),
        {name: {LABELS.key: {seed: curve[300] for seed, curve in each.items()}} for name, each in seeds.items()},
        {name: {LABELS.key: each} for name, each in seeds.items()},
        {"unchanged": 20.0, "slow": 20.0, "quick": 20.0, "solver": 40.0},
        {"unchanged": 1.0, "slow": 2.5, "quick": 0.5, "solver": 1.0},
    )


@pytest.mark.parametrize(
    ("cost", "step"), [(1.0, 300), (1.02, 300), (1.5, 200), (2.5, 120), (2.51, 119), (1000.0, 1), (0.5, 300)]
)
def test_the_step_after_the_same_time(cost, step):
    assert step_at_equal_time(300, cost) == step


def test_every_setting_is_shown_when_it_has_used_the_time(results):
    table = equal_time_table(results, {name: {} for name in results.settings})
    values = {label: [figure.value for figure in row] for label, row in table.rows.items()}
    assert values["Steps in that time"] == [300, 120, 300, 300]
    assert values["Share of that time"] == pytest.approx([1, 1, 0.5, 1])
    assert values["Model evaluations per sample"] == [20, 20, 20, 40]
    assert values["Label accuracy"] == pytest.approx([0.61, 0.36, 0.31, 0.71])


def test_differences_are_paired_and_left_out_where_steps_are_time(results):
    figures = list(equal_time_figures(results, {name: {} for name in results.settings}, BEFORE))
    assert [figure.label.partition(": ")[2] for figure in figures] == ["slow - unchanged", "quick - unchanged"]
    assert [figure.value for figure in figures] == pytest.approx([-0.25, -0.3])
    assert figures[0].interval == pytest.approx((-0.25, -0.25))  # the seeds cancel
    assert (figures[0].conditions["measured_after_steps"], figures[0].conditions["compared_with_steps"]) == (120, 300)
    summary = equal_time_summary(results, BEFORE)
    assert "slow -0.250" in summary
    assert "solver" not in summary


def test_a_setting_that_could_not_be_measured_is_left_out(results):
    del results.costs["slow"]
    conditions = {name: {} for name in results.settings}
    assert equal_time_table(results, conditions).columns == ["unchanged", "quick", "solver"]
    assert len(list(equal_time_figures(results, conditions, BEFORE))) == 1


def test_a_cost_that_could_not_be_measured_is_measured_by_the_next_command(tmp_path, monkeypatch):
    config = load_config("digits/newer_losses").model_copy(update={"output": tmp_path})
    runs = all_runs(config, ablation.settings(config)[:2])[:2]
    known = {"unchanged": 1.0}
    for found in (None, 1.5, 9.0):
        monkeypatch.setattr("alight.studies.costs.cost_of", lambda *subjects, found=found: found)
        known |= {} if found is None else {"repa": 1.5}  # measured once
        assert recorded_costs(tmp_path, runs, list(shared_jobs(config).values())) == known


def test_the_second_table_is_part_of_page_and_file_only_where_there_is_one(results):
    table = equal_time_table(results, {name: {} for name in results.settings})
    with_table, without = Report("t", "s", further_comparisons=[table]), Report("t", "s")
    assert report_data(with_table)["further_comparisons"][0]["columns"] == ["unchanged", "slow", "quick", "solver"]
    assert "further_comparisons" not in report_data(without)
    assert "At the same time of training" in render_page(with_table)
    assert "comparison-2" not in render_page(without)


def test_rows_are_those_of_the_figures_that_reports_have(results):
    conditions = {name: {} for name in results.settings}
    assert list(columns(results, MEASURES, conditions)) == ["Label accuracy"]
    for number, name in enumerate(results.settings):
        results.values[name]["gram_agreement"] = {0: number / 10}
    rows = columns(results, MEASURES, conditions)
    assert list(rows) == ["Gram agreement", "Label accuracy"]
    assert [figure.value for figure in rows["Gram agreement"]] == [0, 0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("recipe", "setting", "shape", "width"),
    [
        ("digits/newer_losses", "repa", (32, 2, 2), 96),
        ("digits/ablation_encoder", "frozen encoder", (96, 2, 2), None),
    ],
)
def test_costs_are_those_of_the_studys_own_foundation_model(recipe, setting, shape, width, tmp_path):
    config = load_config(recipe).model_copy(update={"output": tmp_path})
    run = next(run for run in all_runs(config, ablation.settings(config)) if run.setting == setting)
    latents = subject_of(run, list(shared_jobs(config).values())).latents
    assert (latents.shape, latents.feature_dim) == (shape, width)

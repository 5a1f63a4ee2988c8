"""The stages end to end at a tiny size; kill and resume; what is measured; trained models as files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from dbae_cases import DATA, FIT, MEASURE, METHOD, NETWORK, SHAPE, plain_data, random_images, write_celeba
from safetensors.numpy import load_file
from sklearn.linear_model import LinearRegression
from stage_commands import command_line

from papers.dbae import evaluate, figures, prepare, train
from papers.dbae.autoencoders import build_autoencoder
from papers.dbae.checkpoints import read_autoencoder, write_autoencoder
from papers.dbae.measurements import (
    Codes,
    class_scores,
    image_errors,
    manipulated,
    pixel_distance,
    probe_directions,
    probe_scores,
    random_endpoints,
    squared_errors,
)
from papers.dbae.networks import FastGanDecoder
from papers.dbae.options import METHODS, MethodOptions, Scale
from papers.dbae.training import load_average, snapshot_steps, train_autoencoder
from shared.checkpoints import Checkpointer
from shared.errors import InputError
from shared.options import read_scale
from shared.plotting import house_style, save_figure
from shared.results import read_metrics, read_units
from shared.stage import run
from shared.tables import read_table
from shared.vision.similarity import ssim

ROOT = Path(__file__).resolve().parents[3]
STAGES = {"prepare": prepare.prepare, "train": train.train, "evaluate": evaluate.evaluate, "figures": figures.draw}
TABLES = ("images", "scores", "curves", "steps", "losses")
ALL = (*METHODS[:6], "diffae_long", *METHODS[6:])


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)  # one process here, several precisions
    torch.use_deterministic_algorithms(False)


def start(stage: str, *options, **values) -> None:
    """Run a stage in this process, by the command line that a rule would use."""
    run(STAGES[stage], command_line(*options, **values))


def outputs(folder: Path) -> dict[str, Path]:
    return {name: folder / f"{name}.parquet" for name in TABLES} | {
        "pictures": folder / "pictures.safetensors", "models": folder / "models", "state": folder / "state",
        "record": folder / "record.json",
    }  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """All methods of one seed and the tables of results."""
    folder = tmp_path_factory.mktemp("dbae")
    start("train", DATA, NETWORK, METHOD, FIT, MEASURE, seed=0, setting="sprites", names=ALL,
          saved=("dbae_d", "pdae"), pixels=(), **outputs(folder))  # fmt: skip
    start("evaluate", paper="dbae", scale="smoke", **{name: folder / f"{name}.parquet" for name in TABLES[:4]},
          records=folder / "record.json",
          **{name: folder / f"{name}.parquet" for name in ("metrics", "units", "learning", "evaluations")})  # fmt: skip
    return folder


def test_every_method_is_measured(measured):
    assert not (measured / "state").exists()
    metrics = read_metrics(measured / "metrics.parquet")
    found = metrics.pivot(index="metric", columns="method", values="value")
    assert set(found.columns) == set(ALL)
    complete = found.loc[["mse", "log_mse", "ssim", "probe_r2", "tad", "decoder_mse"]].drop(columns="ddpm")
    assert complete.notna().all(axis=None) and found.loc["frechet"].notna().all()
    assert found.loc["probe_r2"].notna().all() and found.loc["parameters"].notna().all()
    assert (found.loc["draw_variance", ["dbae", "dbae_d"]] == 0).all()
    assert (found.loc["draw_variance", ["diffae", "diffae_v", "pdae"]] > 0).all()
    assert (found.loc["endpoint_evaluations", ["dbae", "dbae_d"]] == 0).all()
    assert found.loc["endpoint_evaluations", "diffae"] == MEASURE.infer_steps
    assert found.loc["mse_inferred"].drop(["ae", "beta_vae", "dbae", "dbae_d"]).notna().all()
    assert found.loc["texture_r2_with_endpoint", ["dbae_d", "diffae"]].notna().all()
    units = read_units(measured / "units.parquet").query("method == 'diffae' and metric == 'mse'")
    assert len(units) == MEASURE.reconstructed
    assert units["value"].mean() == pytest.approx(found.loc["mse", "diffae"])
    seconds = json.loads((measured / "record.json").read_text())["measurements"]["seconds"]
    assert metrics.query("method == 'pdae'")["wall_seconds"].unique() == [seconds["pdae"]]


def test_the_learning_curve_has_a_point_for_each_share(measured):
    learning = read_table(measured / "learning.parquet")
    steps = {name: sorted(rows["step"]) for name, rows in learning.groupby("method")}
    assert steps["dbae_d"] == [2, 4, 8] == snapshot_steps(FIT, 48) and steps["diffae_long"] == [3, 6, 12]
    last = learning.query("method == 'dbae_d' and step == 8")["probe"].item()
    scores = read_table(measured / "scores.parquet").query("method == 'dbae_d' and metric == 'probe_r2'")
    assert last == pytest.approx(scores["value"].item(), abs=1e-5)


def test_evaluations_of_the_network_are_counted(measured):
    rows = read_table(measured / "evaluations.parquet").query("method == 'dbae_d'").set_index(["sampler", "steps"])
    assert rows["evaluations"].to_dict() == {("ode", 2): 2, ("ode", 3): 3, ("heun", 2): 3, ("heun", 3): 5,
                                             ("sde", 2): 4, ("sde", 3): 6}  # fmt: skip


def test_every_figure_is_drawn_and_by_its_stage_alike(measured, tmp_path):
    tables = {name: measured / f"{name}.parquet" for name in ("metrics", "learning", "evaluations")}
    read = {name: read_table(path) for name, path in tables.items()}
    with house_style():
        for name, function in figures.FIGURES.items():
            drawn = function(figures.Tables(**read, pictures=load_file(measured / "pictures.safetensors")))
            save_figure(drawn, tmp_path / f"{name}.png")
            assert (tmp_path / f"{name}.png").stat().st_size > 3_000, name
    paths = {**tables, "pictures": measured / "pictures.safetensors", "png": tmp_path / "one.png",
             "pdf": tmp_path / "one.pdf"}  # fmt: skip
    start("figures", figure="methods", **paths)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "methods.png").read_bytes()
    with pytest.raises(SystemExit, match="figure 'nothing': there is none; there are: reconstructions"):
        start("figures", figure="nothing", **paths)


def test_a_saved_model_decodes_as_it_did(measured):
    method, model = read_autoencoder(measured / "models" / "dbae_d.safetensors", network=NETWORK, options=METHOD)
    assert method == "dbae_d" and not model.training
    pictures = load_file(measured / "pictures.safetensors")
    shown = torch.from_numpy(pictures["dbae_d/original"]).float() / 127.5 - 1
    z = model.encode(shown)
    decoded = model.decode(z, model.endpoint(z), MEASURE.decode_steps).x0
    expected = torch.from_numpy(pictures["dbae_d/draws"][0]).float() / 127.5 - 1
    torch.testing.assert_close(decoded, expected, rtol=0, atol=0.03)
    method, model = read_autoencoder(measured / "models" / "pdae.safetensors")
    assert method == "pdae" and model.decode(model.encode(shown), torch.zeros_like(shown), 3).shape == shown.shape


def test_a_model_of_other_options_is_refused(measured, tmp_path):
    path = measured / "models" / "dbae_d.safetensors"
    with pytest.raises(InputError, match=r"trained with sigma_data_end = 0.5, not with 0.0"):
        read_autoencoder(path, options=replace(METHOD, sigma_data_end=0.0))
    with pytest.raises(InputError, match="trained with latent_dim = 3, not with 4"):
        read_autoencoder(path, network=replace(NETWORK, latent_dim=4))
    with pytest.raises(InputError, match="no such file"):
        read_autoencoder(tmp_path / "absent.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="not a trained autoencoder"):
        read_autoencoder(tmp_path / "damaged.safetensors")
    model = build_autoencoder("dbae", SHAPE, NETWORK, MethodOptions(bridge="ve", t_max=80.0), seed=0)
    write_autoencoder(tmp_path / "ve.safetensors", model, "dbae", SHAPE, NETWORK, model.options)
    assert read_autoencoder(tmp_path / "ve.safetensors")[1].schedule.kind == "ve"


def test_files_of_a_folder_go_all_the_way(tmp_path, monkeypatch):
    """CelebA's layout, the paper's kind of networks, RAdam and mirrored images, in half precision."""
    monkeypatch.setattr(FastGanDecoder, "CHANNELS", {4: 16, 8: 8, 16: 8})
    folder, attributes = write_celeba(tmp_path, count=24, size=(153, 185))
    data = replace(DATA, kind="folder", image_size=16, folder=str(folder), attributes=str(attributes), test_images=8,
                   train_images=16, crop=(25, 57, 128))  # fmt: skip
    start("prepare", data, images=tmp_path / "images.safetensors", record=tmp_path / "prepared.json")
    network = replace(
        NETWORK, architecture="adm", channel_factors=(1, 2), encoder_factors=(1, 2), norm_groups=4,
        attention_sizes=(8,), dropout=0.1, latent_dim=4,
    )  # fmt: skip
    training = replace(FIT.training, epochs=1.0, batch_size=8, mixed_precision="bf16")
    fit = replace(FIT, training=training, optimizer="radam", flip=True)
    small = replace(MEASURE, reconstructed=6, probed_images=10, compared_images=16, interpolation_points=2)
    start("train", data, network, METHOD, fit, small, seed=0, setting="celeba", names=("dbae",),
          pixels=tmp_path / "images.safetensors", saved=(), **outputs(tmp_path / "run"))  # fmt: skip
    scores = read_table(tmp_path / "run/scores.parquet").set_index("metric")["value"]
    assert {"ap_Bald", "ap_Smiling", "probe_ap", "tad"} <= set(scores.index)
    pictures = load_file(tmp_path / "run/pictures.safetensors")
    assert {"dbae/manipulation-Bald", "dbae/moved-Bald", "dbae/interpolation"} <= set(pictures)


class Killed(BaseException):
    """Nothing catches it."""


def test_a_killed_training_ends_with_the_same_bytes(tmp_path, monkeypatch):
    names, values = ("dbae",), {"seed": 0, "setting": "sprites", "pixels": (), "saved": ("dbae",)}
    few = replace(MEASURE, step_counts=(2,))
    often = replace(FIT, training=replace(FIT.training, checkpoint_every=2))
    start("train", DATA, NETWORK, METHOD, often, few, names=names, **values, **outputs(tmp_path / "whole"))
    save = Checkpointer.save

    def save_and_die(self, steps, record=None):
        save(self, steps, record)
        if steps == 4:
            raise Killed

    monkeypatch.setattr(Checkpointer, "save", save_and_die)
    with pytest.raises(Killed):
        start("train", DATA, NETWORK, METHOD, often, few, names=names, **values, **outputs(tmp_path / "killed"))
    monkeypatch.undo()
    assert (tmp_path / "killed/state/dbae/checkpoints/step-000000004").exists()
    assert not (tmp_path / "killed/scores.parquet").exists()
    torch.manual_seed(1)
    start("train", DATA, NETWORK, METHOD, often, few, names=names, **values, **outputs(tmp_path / "killed"))
    for name in ("scores.parquet", "curves.parquet", "losses.parquet", "models/dbae.safetensors"):
        whole, killed = ((tmp_path / part / name) for part in ("whole", "killed"))
        if name == "scores.parquet":  # but for the time it took
            first, second = (read_table(path).query("metric != 'endpoint_seconds'") for path in (whole, killed))
            pd.testing.assert_frame_equal(first, second)
        else:
            assert whole.read_bytes() == killed.read_bytes(), name


def test_the_average_is_that_of_the_weights(tmp_path):
    """Snapshots hold Σ of decayed weights with diffusers' warm-up, and the last is what the training returns."""
    data, seen = plain_data(random_images(24)), []
    model = build_autoencoder("ae", SHAPE, NETWORK, METHOD, seed=0)
    weight = model.decoder[0].weight
    start_weight = weight.detach().clone()
    model.register_forward_pre_hook(lambda *_: seen.append(weight.detach().clone()))
    fit = replace(FIT, average_decay=0.5)
    trained = train_autoencoder(model, data, fit, is_long=False, seed=0, state=tmp_path)
    live = [*seen[1:]]  # after each step but the last
    average = start_weight
    for number, values in enumerate(live[:1]):
        decay = 0.0 if number == 0 else min(0.5, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * values
    first = build_autoencoder("ae", SHAPE, NETWORK, METHOD, seed=1)
    load_average(first, trained.snapshots[1])
    torch.testing.assert_close(first.decoder[0].weight, average, rtol=1e-6, atol=1e-7)
    load_average(first, trained.snapshots[4])
    torch.testing.assert_close(first.decoder[0].weight, trained.average.decoder[0].weight, rtol=0, atol=0)


def test_errors_are_those_of_images_between_0_and_1():
    originals = random_images(3)
    draws = torch.stack([random_images(3, seed=seed) for seed in (1, 2, 3, 4)])
    table = image_errors({"z": draws, "inferred": originals + 0.2}, originals).pivot(index="image", columns="metric",
                                                                                    values="value")  # fmt: skip
    scaled, drawn = ((part + 1) / 2 for part in (originals.double(), draws.double()))
    expected = (drawn - scaled).square().mean((0, 2, 3, 4))
    np.testing.assert_allclose(table["mse"], expected, rtol=1e-5)
    np.testing.assert_allclose(table["mse_mean"], 0.8 * (drawn.mean(0) - scaled).square().mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(table["draw_variance"], drawn.var(0).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(table["mse_inferred"], 0.01, rtol=1e-4)
    np.testing.assert_allclose(table["log_mse"], np.log(table["mse"]), rtol=1e-6)
    np.testing.assert_allclose(table["ssim"], ssim(drawn[0], scaled), rtol=1e-5)
    assert squared_errors(originals, originals).max() == 0
    first, again = random_endpoints(originals, 2, 0), random_endpoints(originals, 2, 0)
    assert torch.equal(first, again) and first.shape == (2, *originals.shape)


def test_probes_find_what_is_linear_and_nothing_else():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(600, 4)) * [1, 100, 0.01, 1]
    linear, noise = z @ [1.0, 0.01, 100.0, 0.0], rng.normal(size=600)
    codes = Codes(z[:400], z[400:])
    label = (z[:, 0] > 0).astype(int)
    precision, accuracy = class_scores(codes, label[:400], label[400:])
    assert precision > 0.98 and accuracy > 0.95
    data = plain_data(random_images(600))
    data = replace(data, factors=np.stack([linear, noise], 1).astype(np.float32), factor_names=("linear", "noise"),
                   classes=label[:, None], class_names=("sign",))  # fmt: skip
    scores = probe_scores(codes, data[np.arange(400)], data[np.arange(400, 600)])
    assert scores["r2_linear"] > 0.999 and abs(scores["r2_noise"]) < 0.1
    assert scores["probe_r2"] == pytest.approx((scores["r2_linear"] + scores["r2_noise"]) / 2)
    directions = probe_directions(codes, data[np.arange(400)])
    expected = LinearRegression().fit(z[:400], linear[:400]).coef_
    assert directions["sign"].argmax() == 0
    np.testing.assert_allclose(directions["linear"][[0, 1]], expected[[0, 1]], rtol=0.05)
    moved = manipulated(torch.zeros(1, 4), torch.tensor([3.0, 0, 0, 4]), (-0.5, 0.0, 0.5))
    torch.testing.assert_close(moved, torch.tensor([[-0.6, 0, 0, -0.8], [0.0, 0, 0, 0], [0.6, 0, 0, 0.8]]))


def test_distances_of_sets_of_pixels():
    train_images, same, other = random_images(200), random_images(200, seed=1), random_images(200, seed=2) * 0.3
    near, far = (pixel_distance(images, train_images, random_images(200, seed=3)) for images in (same, other))
    assert 0 <= near < far


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("epochs: 3.125", "epochs: many"), "epochs: input should be a valid number"),
        (("[ae, beta_vae, ddpm, pdae]", "[ae, beta_vae, pdae, ddpm]"), "pdae starts from ddpm"),
        (("[dbae_d, dbae]", "[dbae_d, bridge]"), "no method 'bridge'; there are: ae, beta_vae"),
        (("{kind: sprites}", "{kind: sprites, test_images: 8}"), "reconstructed: at most test_images"),
        (("{kind: sprites}", "{kind: sprites, crop: [1, 2]}"), "crop: need left, top and side"),
    ],
)
def test_a_mistake_in_the_configuration_is_named(tmp_path, change, message):
    text = (ROOT / "papers/dbae/config.yaml").read_text()
    assert change[0] in text
    (tmp_path / "config.yaml").write_text(text.replace(*change, 1))
    with pytest.raises(InputError, match=message):
        read_scale(tmp_path / "config.yaml", "small", Scale)

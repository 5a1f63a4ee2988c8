import pytest
import torch
from diffusers_pipelines import _unet as tiny_unet

from shared.t2i.concept_editing import edit_projection, edited_network


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 6, generator=generator, dtype=torch.float64) for count in (4, 2, 2, 3)]


def objective(edited, weight, erased, targets, preserved, erase, preserve, ridge):
    return (
        erase * (erased @ edited.T - targets @ weight.T).square().sum()
        + preserve * (preserved @ edited.T - preserved @ weight.T).square().sum()
        + ridge * (edited - weight).square().sum()
    )


@pytest.mark.parametrize(("erase", "preserve", "ridge"), [(1.0, 1.0, 1.0), (30.0, 0.5, 0.1), (0.1, 0.0, 2.0)])
def test_the_edit_minimises_its_objective(states, erase, preserve, ridge):
    weights = {"erase_weight": erase, "preserve_weight": preserve, "ridge": ridge}
    edited = edit_projection(*states, **weights).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(edited, *states, erase, preserve, ridge), edited)
    assert gradient.abs().max() < 1e-9 * max(1, erase)


def test_weights_say_what_moves(states):
    weight, erased, targets, preserved = states
    same = edit_projection(*states, erase_weight=0.0, preserve_weight=3.0)
    torch.testing.assert_close(same, weight)
    hard = edit_projection(weight, erased, targets, preserved[:0], erase_weight=1e8)
    torch.testing.assert_close(erased @ hard.T, targets @ weight.T, atol=1e-5, rtol=1e-5)
    kept = edit_projection(weight, erased, targets, preserved, erase_weight=1e4, preserve_weight=1e8)
    torch.testing.assert_close(preserved @ kept.T, preserved @ weight.T, atol=1e-2, rtol=1e-2)


def test_bad_states_are_refused(states):
    weight, erased, targets, preserved = states
    with pytest.raises(ValueError, match="erased: need rows of 6"):
        edit_projection(weight, erased[:, :5], targets, preserved, erase_weight=1.0)
    with pytest.raises(ValueError, match="targets: need one"):
        edit_projection(weight, erased, targets[:1], preserved, erase_weight=1.0)
    with pytest.raises(ValueError, match="erase_weight: must not be negative"):
        edit_projection(weight, erased, targets, preserved, erase_weight=-1.0)
    with pytest.raises(ValueError, match="ridge: must be positive, since the states do not span"):
        edit_projection(weight, erased, targets, preserved, erase_weight=1.0, ridge=0.0)


def test_only_keys_and_values_of_the_text_are_edited():
    unet = tiny_unet()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    erased, targets, preserved = (torch.randn(2, 12, generator=generator) for _ in range(3))
    edited = edited_network(unet, erased, targets, preserved, erase_weight=10.0, preserve_weight=1.0)
    changed = {name for name, value in edited.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in changed)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())

"""Training step by step against the original: same weights, same batches, no dropout."""

import pytest
import torch
from detectron2.modeling import build_model

from detr_d2.engine import build_optimizer

STEPS = 50


@pytest.mark.slow
def test_fifty_steps_follow_the_original(make_cfg, make_original, make_original_criterion, make_inputs, original_batch):
    """AdamW with two learning rates, weight decay and clipping at 0.1; losses within 1e-4 relative."""
    cfg = make_cfg("MODEL.DETR.DROPOUT", 0.0)
    original = make_original(cfg).train()
    model = build_model(cfg)
    model.load_state_dict(original.state_dict())
    model.train()
    # The original freezes the stem and the first stage, as Detectron2 does with FREEZE_AT 2.
    for name, parameter in original.backbone[0].body.named_parameters():
        parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))

    criterion = make_original_criterion(cfg)
    groups = [
        {"params": [p for n, p in original.named_parameters() if "backbone" not in n and p.requires_grad]},
        {"params": [p for n, p in original.named_parameters() if "backbone" in n and p.requires_grad], "lr": 1e-5},
    ]
    theirs = torch.optim.AdamW(groups, lr=1e-4, weight_decay=1e-4)
    ours = build_optimizer(cfg, model)

    batches = [make_inputs([(64, 96), (80, 64)], [3, i % 3], seed=i) for i in range(5)]
    history = []
    for step in range(STEPS):
        inputs = batches[step % len(batches)]
        loss = sum(model(inputs).values())
        ours.zero_grad()
        loss.backward()
        ours.step()

        samples, targets = original_batch(inputs, cfg)
        losses = criterion(original(samples), targets)
        expected = sum(losses[name] * weight for name, weight in criterion.weight_dict.items())
        theirs.zero_grad()
        expected.backward()
        torch.nn.utils.clip_grad_norm_(original.parameters(), 0.1)
        theirs.step()

        assert loss.item() == pytest.approx(expected.item(), rel=1e-4), f"step {step}"
        history.append(loss.item())
    assert sum(history[-5:]) < sum(history[:5])

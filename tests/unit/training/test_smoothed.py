"""The loss of ``train.label_smoothing`` is torch's cross-entropy with that smoothing."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.trainer_pt_utils import LabelSmoother

from hydraft.data.labels import IGNORE
from hydraft.training import smoothed


@pytest.mark.parametrize("shifted", [True, False])
def test_it_is_that_of_torch(shifted: bool) -> None:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(**shape))
    ids = torch.randint(50, (3, 8))
    labels = ids.masked_fill(torch.rand(3, 8) < 0.3, IGNORE)
    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE)
    if shifted:  # as a padding-free batch
        ids, labels, following = ids.view(1, -1), labels.view(1, -1), following.view(1, -1)
        kept = (following[0] != IGNORE).nonzero()[:, 0]
        batch = {"input_ids": ids, "labels": labels, "shift_labels": following[0, kept], "logits_to_keep": kept}
    else:
        batch = {"input_ids": ids, "labels": labels}
    count = torch.tensor(17)
    found = smoothed.loss(LabelSmoother(0.1), model, batch, count).value
    summed = cross_entropy(
        model(ids).logits.flatten(0, 1), following.flatten(), ignore_index=IGNORE, label_smoothing=0.1, reduction="sum"
    )
    torch.testing.assert_close(found, summed / 17)

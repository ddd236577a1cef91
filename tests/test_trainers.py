"""What the trainers offer, without a server."""

from lib.sam.training.finetune_config import Finetune2dConfig
from lib.trainers.finetune import FinetuneTask

from tests.sam.models2d import write_small_model


def test_a_trainer_is_offered_where_there_are_weights_to_start_from(tmp_path):
    task = FinetuneTask("repmedsam", str(tmp_path), {"liver": 1}, None, "cpu", Finetune2dConfig)
    assert not task.is_valid()
    write_small_model(tmp_path)
    assert task.is_valid()
    assert not FinetuneTask("repmedsam", str(tmp_path), {}, "no_such_weights", "cpu", Finetune2dConfig).is_valid()
    assert task.config()["minutes"] == Finetune2dConfig().minutes
    assert task.stats()["total_epochs"] == Finetune2dConfig().epochs

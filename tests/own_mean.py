"""sailkit with a fault, each process takes the mean over its own tokens; started by test_finetune_distributed."""

from sailkit.cli import main
from sailkit.training import trainer

trainer.Trainer._for_each_token = lambda self, total, count, items: total / count.clamp(min=1)
main()

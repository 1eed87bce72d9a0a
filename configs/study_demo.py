"""Which block of the demo's base? After the demo (make demo): python study.py configs/study_demo.py"""

from configs import Study, replace
from configs.demo_full import config as full

# The demo's own fine-tuning, cut to half its steps: 3 x (1 + 5) runs, 2 more for learning rates, 6 for the
# teacher.
study = Study(
    name="which",
    training=replace(
        full, name="which", max_steps=300, warmup_steps=30, eval_every=0, save_every=100, log_every=100),
    learning_rates=(1e-3, 3e-3),
)

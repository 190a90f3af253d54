"""The study.yaml that `kdnas init` writes, and what in it follows the kind of work."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class KindOfWork:
    """The words and proposals of a new study for one kind of samples."""

    samples: str
    """What they are called."""
    size: str
    """What a share of their size is of."""
    size_option: str
    """Of the data: what brings samples to a size."""
    data: str
    """The data set that this work most often has: a member's name."""
    teacher: str
    """The same of its teacher."""
    shape: str
    """An example of what `kdnas spaces show --input` takes."""
    views: str
    """The section of random views."""
    cut: str
    """Which choices students cut out of a teacher have."""
    latency: str
    """Options of a latency."""
    space: str = ""
    """The students to search, of stated families; empty: by the samples' size."""


STATED = """\
# --- Students: {spaces}, or a .yaml file of your own. `kdnas spaces show NAME --input {shape}`
# shows what its students cost on {samples} of that size.
space: {space}
"""
CUT = """\
# --- Students: cut out of the teacher, beginning with its weights. `kdnas spaces show .` opens it and shows what of it
# can be cut, what cannot and why, and the choices that follow; `kdnas spaces count .` counts them.
# Each is a list of shares of the teacher's ([0.5, 1]), of sizes ([96, 128]), or a range of either (0.25..1).
space:
  derive: teacher
  # granularity: stage  # or network, or block: what one choice rules; network for transformers unless stated
{cut}  # round_to: 8
  # freeze: []  # modules, choices or parts that stay whole, by name; * stands for anything
  # importance: activation  # what ranks units; or taylor, l1
  # block_importance: divergence  # what ranks blocks; or influence, even
  # reconstruct: true  # what stays of a layer makes up for what is gone, before any training
start: inherited  # or random
"""
START = """\
# start: inherited  # begin from weights of a teacher of the students' family; random unless stated
"""
_IMAGE_VIEWS = """\
  augmentation:
    flip: true  # not where left and right matter, as in digits
    crop_padding: 4  # pixels; 0 for none
    cutout: 0  # side of a square, in pixels
    mixup: 0.0
    # random_resized_crop: {scale: [0.5, 1.0]}  # share of the image's area; {} is 0.08 to 1
    # color_jitter: {brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1}
    # rand_augment: {ops: 2, magnitude: 9}
    # random_erasing: {probability: 0.25}
"""
TEMPLATE = """\
# A kdnas study. Fill in the lines marked YOURS; everything else has a sensible default.
#   kdnas validate .          every problem at once, with its line
#   kdnas validate . --open   opens data and teacher too, and checks and measures them as the search does
#   kdnas search .            the search; run it again to resume
name: {name}
seed: 0  # the same seed on one worker gives the same trials
device: auto  # auto, cpu or cuda

# --- Data: paths are relative to the data root (--data-root, else the environment variable KDNAS_DATA, else ./data).
# Other sources: kdnas list datasets
data:
{data}
  validation_fraction: 0.2  # of the training split, held out to score students on; the test split waits for the end
# task: my_task  # the kind of work, where it is not the one that the data pose: a task of your own; or another score
#                # than the usual one: {{score: f1}}, {{score: matthews}}

# --- Teacher: the fixed network that students learn from. Paths are relative to the data root. Weights are safetensors
# or a checkpoint of tensors; pickled modules and .pt2 files are refused.
# Other sources: kdnas list teachers
teacher:
{teacher}
# teacher_name: teacher  # the name by which losses refer to it
# Several teachers: `teachers: {{NAME: {{type: ...}}}}`; losses name one by `of: NAME`, or all by `of: ensemble`. By
# `task: NAME` a teacher answers one of several tasks. It may have samples of its own, by `data: {{type: ..., pair:
# label}}`: for each of the study's one of the same class, such as a spoken word for a written one; with pair: order
# the one at the same place, with pair: key the one of the same key.

{students}
# --- What is wanted: {score}, and what it shall be traded for (two to four in all).
objectives: [{score}, macs]  # kdnas list costs
# Hard bounds on costs: what breaks one known from the arch alone is never trained. Also of the teacher's ("macs<=5%"),
# and goals for the retrained students: "{goal}", "teacher-1" (at most one point below the teacher).
constraints: []  # such as ["macs<=10M", "latency_ms<=2"]
# Options of measured costs:
# costs:
#   latency_ms: {latency}

# --- How a student is trained to be scored. Fewer epochs, a share of the data or of the samples' size make cheaper
# and rougher scores. Updates decide, not epochs: here a score is {updates:,} of them, on {count:,} training {samples};
# below about 500 a score means little. With few {samples} take more epochs and smaller batches.
training:
  epochs: {epochs}
  data_fraction: 1.0
  # proxy: random  # who chooses that share of the data: kdnas list proxies
  resolution_fraction: 1.0  # of {size}
  batch_size: {batch_size}
  optimizer: {steps.optimizer}
  learning_rate: {steps.rate:g}  # warmed up, then a cosine to zero
  momentum: 0.9
  weight_decay: {steps.decay}
  warmup_fraction: 0.1
  {clip}clip_norm: 1.0
  # ema: 0.999  # score and keep a moving average of the weights
  precision: auto  # bfloat16 where the processor has instructions for it, else float32; recorded with the run
  # threads: 1  # CPU threads of a training; more pay for large {samples} with few workers
  # fused_norms: auto  # where there is a C compiler
{views}
# --- loss = task_weight * cross entropy + the sum of weight * distillation loss
distillation:
  task_weight: 0.1  # 1.0 with dkd and losses that read features, as their authors have it
  label_smoothing: 0.0
{losses}
  losses:
    - {loss}
    # - {{type: hint, weight: 100.0}}  # its authors' weight, which it has unless stated
    # - {{type: dkd, warmup_fraction: 0.083}}  # its weight grows in this share of the steps
    # - {{type: hint, during: [0, 0.5]}}  # it counts in the first half of the steps alone
    # - {{type: kd, of: peers}}  # of students of its kind trained together with it; of: ema, its own moving average;
    # - {{type: exits, of: self}}  # its own end: exits inside, which are dropped at export
  # peers: 2  # students of a kind that learn together, where a loss is of: peers; or [{{family: ..., choices: ...}}]
  # ema_teacher: 0.999  # the decay of that average, where a loss is of: ema
  # ensemble: {{mean: probabilities, weights: confidence}}  # how several teachers speak as one
  # teacher_top_k: 100  # with thousands of classes: keep only the largest of the teacher's logits
  # on_policy: {{share: 0.5}}  # language models: in half of the batches the student goes on by itself
  # teacher_draws: 50  # or draws from its answers, with which kd at temperature 1 has no bias

# --- Training settings to search with the architecture. The learning rate often decides more than the network does; for
# adamw it is about 3e-4 to 1e-2. Take this out where a supernet scores.
tune:
  training.learning_rate: {{low: {steps.low:g}, high: {steps.high:g}, log: true}}
#   distillation.losses: [kd, hint+kd, {{type: dist, task_weight: 1}}, ce]  # which losses; ce: the labels alone
#   distillation.temperature: {{low: 1.0, high: 8.0}}  # of each loss that has one; distillation.losses.kd.weight: of kd

# --- The search.
# storage: postgresql://user@host/database  # keeps the trials where many studies do; the run folder unless stated
# store: s3://bucket/folder      # caches and checkpoints of machines that share no disk; credentials: the environment
sampler: auto  # by budget and objectives; kdnas list samplers
# blocks: {{samples: 512, epochs: 1}}  # how `sampler: blocks` fits each block of the teacher: kdnas help blocks
executor:
  type: local  # workers: one a core, or one a GPU, unless stated
  per_device: 1  # students trained at once on a GPU; auto measures how many pay
# trackers: [jsonl]  # where progress goes in addition to the screen: kdnas list trackers
# Lowest first, the last one as `training` above; the promising students of one are trained on at the next. A budget of
# trials counts the scores of all rungs.
# rungs: [{{epochs: {short}}}, {{epochs: {epochs}}}]
# rungs: [{{epochs: {nearly}, resolution_fraction: 0.5}}, {{epochs: {epochs}}}]  # or data_fraction: trained anew
# promotion:
#   rule: model  # who is promising: model (hvi's, else rank: learns what short scores say), rank, moasha, halving
#   eta: 3  # one of so many goes on; by default the step between rungs
# evaluator: distil  # where a score comes from: a brief training; kdnas list evaluators
{start}# One supernet, trained first, scores hundreds of students untrained; the promising ones are trained as before:
# rungs: [{{start: supernet}}, {{start: supernet, epochs: 1, data_fraction: 0.2}}, {{epochs: {epochs}}}]
# supernet:
#   epochs: 20  # of training, counted in epochs of its largest student
#   score_samples: 1000  # validation {samples} of a score; all of them unless stated
budget:  # the first limit that is reached ends the search
  trials: 40  # scores of students
  # full_trainings: 20  # epochs x data share x resolution share squared, in units of one final training
  # wall_clock_s: 7200
  # stagnation: {{trials: 30, gain: 0.005}}  # stop when 30 scores in a row made the hypervolume grow by less
  trial_time_limit_s: 3600

# --- The students on the front are retrained from scratch with several seeds, and only then meet the test split.
final:
  seeds: 3
  # epochs: 30  # as in `training` unless stated
  until: flat  # doubles these epochs until twice as many give less than 1 point more; or `epochs`: no more than those
  max_epochs: 200
  control: true  # the picked student is also trained once on labels alone: what does distillation add?
  data_fraction: 1.0
  max_students: 8
  attempts: 2  # a retraining that failed so often is given up
  # distillation: {{task_weight: 1, losses: [{{type: hint}}]}}  # finalists learn of other losses than the search's
  # route: assistants  # taught by members of the front in turn; or born_again, shrink, grow; else direct
  # compare_direct: true  # the picked one directly too, on the same budget
  # completions: [words.jsonl]  # what language models are to complete, or to answer; objectives may name it: `words`

# --- What is exported at the end. kdnas list exporters
export:
  # near-best: the cheapest student within 1 point of the best, or within its 95 % interval up to 3 points; or
  # best-0.5, teacher-1 (within 1 point of the teacher), best, knee, '{goal}' (the cheapest that reaches it),
  # 'macs<=5M' or 'macs<=5%' of the teacher's (the best within it)
  pick: near-best
  formats: [{formats}]
"""

_TEXT_VIEWS = """\
  augmentation:
    token_dropout: 0.0  # share of the tokens hidden from every network
"""
_CUT_OF_IMAGES = """\
  depth: 0.25..1  # blocks that stay
  width: [0.5, 0.75, 1]  # of what flows from block to block
  inner: [0.25, 0.5, 0.75, 1]  # inside blocks: bottlenecks, expansions, MLPs
  # heads: [0.5, 1]  # of attention, with all queries that share keys and values
"""
_CUT_OF_TEXTS = """\
  depth: 0.25..1  # blocks that stay
  inner: [0.25, 0.5, 0.75, 1]  # of the MLPs
  heads: [1]  # or [0.5, 1]: of attention, with all queries that share keys and values
  width: [1]  # or [0.5, 1]: of what flows from block to block
"""
_OF_A_TEXT = "{length: 32}  # of a text of so many tokens"
IMAGES = KindOfWork(
    samples="images",
    size="the images' height and width",
    size_option="size",
    data="image_folder",
    teacher="module",
    shape="3x64x64",
    views=_IMAGE_VIEWS,
    cut=_CUT_OF_IMAGES,
    latency="{threads: 1}",
)
_LABELLED_TEXTS = KindOfWork(
    samples="texts",
    size="the texts' length",
    size_option="length",
    data="text_table",
    teacher="sequence_classifier",
    shape="64x30522",
    views=_TEXT_VIEWS,
    cut=_CUT_OF_TEXTS,
    latency=_OF_A_TEXT,
    space="texts_bert",
)
OF_TEXTS = {
    "text_classification": _LABELLED_TEXTS,
    "text_ranking": replace(_LABELLED_TEXTS, samples="lists", data="text_lists"),
    "language_modelling": KindOfWork(
        samples="blocks",
        size="the blocks' length",
        size_option="length",
        data="text_corpus",
        teacher="causal_lm",
        shape="128x50257",
        views="",
        cut=_CUT_OF_TEXTS,
        latency=_OF_A_TEXT,
        space="texts_gpt",
    ),
}
"""By the kind of work."""

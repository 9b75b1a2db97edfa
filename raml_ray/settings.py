"""The settings nodes, one per stage and one per thing that several stages share. Only `config.py` assembles them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Immutable, typo-proof base of every node; the text under a field is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


class MiniatureConfig(Settings):
    """The embedded task: plain sums over a fixed number of slots, one token per slot."""

    num_slots: int = Field(6, ge=3, le=12)
    """Slots of one line; a question fills the rightmost ones."""
    num_operands: int = Field(5, ge=2)
    """Operands of a training and of an in-domain question."""
    deeper_operands: int = Field(6, ge=2)
    """Operands of a question of the `deeper` set: more reduction steps than any SFT or GRPO question needs."""
    num_train: int = Field(1024, ge=1)
    """Questions that trajectories are drawn for and policies are trained on."""
    transfer_fraction: float = Field(0.0, ge=0, le=1)
    """Share of the training questions that are of the other domain (sums modulo 10), spread evenly over the set."""
    num_eval: int = Field(60, ge=1)
    """Questions of each evaluation set; none occurs among the training questions."""
    reflection_probability: float = Field(0.08, ge=0, le=1)
    """Chance, per step of an oracle trajectory, of a slip that the next line corrects after `Wait`."""
    verification_probability: float = Field(0.1, ge=0, le=1)
    """Chance that an oracle trajectory checks its result by a second pass after `Alternatively`."""


class BaseConfig(Settings):
    """The policy that a run starts from, where it is not given: the miniature's, or one of random weights."""

    kind: Literal["miniature", "random"] = "miniature"
    """`miniature`: trained from scratch on the embedded task; `random`: random weights and a byte-level tokenizer trained
    on the text of data.path, to take any data through every stage in minutes (its accuracy is chance)."""
    attention: Literal["softmax", "linear", "delta"] = "softmax"
    """Of the miniature's policy. `linear` (linear attention) and `delta` (the delta rule, as in DeltaNet) keep a state in
    every head in place of keys: twins that `analyze` measures, and that no engine or learner knows."""
    vocab_size: int = Field(512, ge=260)
    """Entries of the byte-level tokenizer of a `random` policy."""
    num_steps: int = Field(400, ge=1)
    batch_size: int = Field(64, ge=1)
    """Documents of one optimizer step."""
    muon_learning_rate: float = Field(1e-2, gt=0)
    """Of the hidden two-dimensional matrices."""
    learning_rate: float = Field(3e-3, gt=0)
    """AdamW's, of everything else."""
    warmup_steps: int = Field(20, ge=0)
    slip_probability: float = Field(0.12, ge=0, le=1)
    """Chance, per step of a training document, of an error: what leaves SFT and RL something to teach."""
    noticed_fraction: float = Field(1 / 3, ge=0, le=1)
    """Of the errors in training documents how many the next line corrects after `Wait`."""
    early_answer_fraction: float = Field(0.2, ge=0, le=1)
    """Share of chat documents whose thinking is cut anywhere and answered at once: calibrates L-hat's probe."""
    hidden_size: int = Field(96, ge=32)
    num_layers: int = Field(4, ge=1)
    num_heads: int = Field(3, ge=1)
    """hidden_size / num_heads must be a head size that vLLM's CPU attention knows: 32, 64, 80, 96, 112, 128."""
    num_kv_heads: int = Field(1, ge=1)
    intermediate_size: int = Field(288, ge=32)
    num_threads: int = Field(2, ge=1)
    timeout_s: float = Field(3600, gt=0)
    """The policy must be there by then."""


class DataConfig(Settings):
    """Where questions (and published trajectories) come from, and which columns hold what."""

    path: str = ""
    """`miniature:train`, a jsonl or Parquet file, folder or fsspec URL, `hf:OWNER/NAME` (or `hf:FOLDER`) for a Hugging Face
    data set, or `paper:NAME` for one of the paper's (`orz-math`, `orz-math-val`, `orz-math-qwen-72b-rollouts`,
    `orz-math-distill-14b-rollouts`) or benchmarks (docs/paper.md)."""
    subset: str = ""
    """Configuration name of a Hugging Face data set."""
    split: str = "train"
    """Split of a Hugging Face data set."""
    revision: str = ""
    """Commit of a Hugging Face data set."""
    revisions: dict[str, str] = {}
    """OWNER/NAME -> commit, of the Hugging Face data sets behind `paper:` names, which all have to be pinned."""
    mirror: str = ""
    """A folder that holds the sets behind `paper:` names in the hub's place: NAME.jsonl, NAME.parquet or a folder NAME of
    such files, with checksums of them all in SHA256SUMS, as the command sha256sum writes them."""
    columns: dict[str, str] = {}
    """Our name -> the source's column (dots descend into records), for question_id, problem, answer, domain, level."""
    answer_pattern: str = ""
    """Regular expression whose first group is the gold answer inside the answer column; the last match counts. Empty: whole column."""
    texts: dict[str, str] = {}
    """Policy name -> column that holds its published trajectory (a text, or a list of texts), for generate.source=import."""
    labels: dict[str, str] = {}
    """Policy name -> column that holds the published verdict of each such trajectory; compared with ours by `verify`."""
    limit: int = Field(0, ge=0)
    """Questions taken, from the first, after filters; 0 is all."""
    levels: tuple[int, ...] = ()
    """Only questions of these levels (data.columns.level); the others are filtered and counted. Empty takes all."""
    answers: Literal["math", "choice", "code"] = "math"
    """What the gold answers are: mathematics, a letter of a multiple choice, or tests that a program has to pass."""
    filters: tuple[Literal["verifiable", "complete", "no_image", "no_markup", "digits"], ...] = ()
    """Questions that a filter turns down are left out, of evaluation sets too, and counted by reason (paper 3.1):
    `verifiable` (the gold answer can be judged), `complete`, `no_image`, `no_markup` (neither address nor HTML), `digits`
    (the answer is a whole number in digits). By default all are kept."""
    max_rejected_fraction: float = Field(0.01, ge=0, le=1)
    """A stage stops when a larger share of its rows had to be set aside: of the source's, and of the trajectories that
    were to be sampled."""


class PolicyConfig(Settings):
    """A policy that no step of the run makes."""

    path: str = ""
    """Folder or Hugging Face name of a causal LM; what steps without a `policy` step start from."""
    revision: str = ""
    """Commit of a Hugging Face model."""
    random_init: bool = False
    """Start from random weights of the folder's config.json instead of its weights."""


class PromptConfig(Settings):
    """How a question becomes prompt tokens."""

    template: Literal["chat", "plain"] = "chat"
    """`chat`: the tokenizer's chat template; `plain`: the text of `instruction` as it is."""
    system: str = ""
    """System turn; empty leaves it out."""
    instruction: str = "{problem}"
    """The user turn; `{problem}` is replaced by the question."""
    thinking: bool = True
    """Passed to the chat template as `enable_thinking`; false is refused where the template does not know it."""
    response_prefix: str = ""
    """Text that every response is made to begin with (a no-thinking delimiter, say)."""


class EngineConfig(Settings):
    """One vLLM engine."""

    kind: Literal["vllm", "scripted"] = "vllm"
    """`scripted` answers deterministic text from the seed, without a model: for tests and the pipeline's own benchmarks."""
    cpus_per_engine: int = Field(1, ge=1)
    gpus_per_engine: float = Field(0, ge=0)
    """0, a part of one GPU, or tensor_parallel_size times pipeline_parallel_size."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs that share every layer."""
    pipeline_parallel_size: int = Field(1, ge=1)
    """Groups of such GPUs, each of which holds a part of the layers."""
    placement: Literal["pack", "spread"] = "spread"
    """Engines of one step fill node after node, or go round the nodes."""
    node_labels: dict[str, str] = {}
    """Ray node labels that a node must carry to get an engine."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_model_len: int = Field(512, ge=2)
    """Tokens of prompt and response together."""
    max_num_seqs: int = Field(256, ge=1)
    """Sequences that one engine decodes at once."""
    kv_cache_gib: float = Field(0.25, gt=0)
    """Key-value cache of an engine on CPU, GiB."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    enforce_eager: bool = True
    start_timeout_s: float = Field(300, gt=0)
    """An engine that is not up by then is ended and started anew. The step fails if no other one works: at once if none
    ever did, else when four in a row did not start; in `grpo` as after any other failure (grpo.max_engine_failures)."""
    request_timeout_s: float = Field(600, gt=0)
    """In `grpo` an engine that has not taken over weights, scored a probe or given a sign of life by then is replaced."""
    stall_timeout_s: float = Field(300, gt=0)
    """An engine that has work and finishes no step for so long hangs: it is ended, and a fresh one takes its place."""
    max_attempts: int = Field(2, ge=1)
    """In `generate` and `evaluate` a row over which so many engines died, with nothing else in them, is set aside."""
    max_failures: int = Field(20, ge=0)
    """More engines that died in `generate` or `evaluate`, while no row came out of any or was found to be at fault, end
    the step: the fault is not a row's."""


class GenerateConfig(Settings):
    """Trajectories for every question (Ray Data over engines), or taken over from elsewhere."""

    source: Literal["policy", "import", "oracle"] = "policy"
    """`policy`: sampled by vLLM; `import`: published texts (data.texts); `oracle`: the miniature's own solutions."""
    num_engines: int | tuple[int, int] = 1
    """Engines at once, or (fewest, most): Ray Data starts more while shards wait."""
    num_samples: int = Field(8, ge=1)
    """Trajectories per question."""
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(-1, ge=-1)
    """-1 is off."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Tokens less likely than so many times the likeliest one are never drawn; 0 is off."""
    repetition_penalty: float = Field(1.0, gt=0)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    min_tokens: int = Field(0, ge=0)
    """No response ends before it has so many tokens."""
    max_tokens: int = Field(128, ge=1)
    """Response tokens."""
    stop: tuple[str, ...] = ()
    """Texts that end a response; the token that completes one is its last."""
    bad_words: tuple[str, ...] = ()
    """Texts that no response holds, with or without a space before them: their last token is not drawn."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of a token id and what is added to its logit: `[[42, -5.0]]`."""
    thinking_budget: int = Field(0, ge=0)
    """Budget forcing: thinking that has not ended after so many tokens is cut there and `budget_text` put behind it; 0 is off."""
    budget_text: str = "\n</think>\n\n**Final Answer**\n\\boxed{"
    """What is put behind thinking that was cut (the paper's has no `</think>`)."""
    budget_answer_tokens: int = Field(64, ge=1)
    """Most response tokens after `budget_text`, within max_tokens."""
    shard_questions: int = Field(16, ge=1)
    """Questions of one shard: the unit of commit and of work lost to a kill."""
    oracle_length: Literal["long", "short"] = "long"
    """The oracle reduces one pair of operands per line (`long`) or two."""


class VerifyConfig(Settings):
    """Judging final answers (math-verify in killable processes)."""

    judge: Literal["strict", "paper"] = "strict"
    """Of mathematics. `strict`: the last box, exact, no known false positive; `paper`: as the paper's evaluation
    (OpenCompass' use of math-verify), with its rounding and its boxes that merge."""
    num_workers: int = Field(2, ge=1)
    """Judge processes per node."""
    cpu_seconds: float = Field(0.6, gt=0)
    """CPU time that the kernel grants one item, seconds; more is the verdict `timeout`. Three times what the slowest of
    a thousand ordinary answers takes."""
    wall_seconds: float = Field(20.0, gt=0)
    """Guard against a judge that sleeps instead of computing, seconds. Thirty times cpu_seconds, which nothing computes
    for on a machine with fewer than thirty busy processes to a core: raise both together."""
    max_answer_chars: int = Field(2000, ge=1)
    """A longer final answer is compared as a string only."""
    answer_pattern: str = ""
    r"""Regular expression whose first group is the final answer of a trajectory; the last match counts. Empty: the last `\boxed{}`."""
    max_failed_fraction: float = Field(0.05, ge=0, le=1)
    """The step stops when a larger share of verdicts is `timeout` or `error`."""
    code_cpu_seconds: float = Field(6.0, gt=0)
    """CPU time that a program has for one test, seconds."""
    code_memory_mib: int = Field(1024, ge=64)
    """Memory that a program may have, MiB."""
    code_output_kib: int = Field(1024, ge=1)
    """Output that a program may write in one test, KiB."""


class TrainConfig(Settings):
    """What the learners of `sft` and `grpo` share."""

    strategy: Literal["fsdp", "deepspeed"] = "fsdp"
    """Who splits the policy over the workers: torch's FSDP2, or DeepSpeed's ZeRO. Losses are the same."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """Of strategy=deepspeed: 1 splits optimizer state, 2 gradients too, 3 weights too; 0 takes 3. Has no meaning elsewhere."""
    offload: bool = False
    """Optimizer state, and what else the strategy can (fsdp, ZeRO-3: gradients and weights), lies in CPU memory."""
    activation_checkpointing: bool = False
    """Each layer is computed again in the backward pass: a third more time for memory of one layer instead of all."""
    attention: Literal["auto", "flash_attention_2", "sdpa"] = "auto"
    """`auto`: flash-attn where it is installed, the policy knows it, and training is in bfloat16 on a GPU; torch's kernel
    otherwise."""
    num_workers: int = Field(1, ge=1)
    cpus_per_worker: int = Field(1, ge=1)
    gpus_per_worker: float = Field(0, ge=0)
    placement: Literal["pack", "spread"] = "pack"
    """Learners of one step fill node after node, or go round the nodes."""
    node_labels: dict[str, str] = {}
    """Ray node labels that a node must carry to get a learner."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of parameters during forward and backward; optimizer state and losses are float32 always."""
    max_tokens_per_micro_batch: int = Field(8192, ge=1)
    """Token budget (padding included) of one forward and backward pass."""
    packing: bool = True
    """Sequences stand one behind the other in one row, without padding; false pads them to the longest of a micro-batch."""
    weight_decay: float = Field(0.0, ge=0)
    memory_gib: float = Field(0, ge=0)
    """Memory that one worker may take, GiB (of its GPU, or of its node); a pass whose estimate exceeds it is refused before
    the start. 0 asks the cluster what there is."""
    peak_tflops: float = Field(0, ge=0)
    """Operations that one device can do in train.dtype, 10^12 a second: learner/mfu is measured against it. 0 knows common
    GPUs in bfloat16 by name; for others, and on CPU, learner/mfu is then not logged."""
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    grad_clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    lora_rank: int = Field(0, ge=0)
    """Train adapters of this rank beside weights that stay as they are; 0 trains the weights themselves. Engines and the
    step's policy folder get the weights with the adapters merged in."""
    lora_alpha: float = Field(32, gt=0)
    """Of lora_rank: an adapter's product is weighted by lora_alpha / lora_rank."""
    lora_targets: tuple[str, ...] = ()
    """Of lora_rank: names of the linear layers that get an adapter (`q_proj`); empty is all but the output head."""
    checkpoint_every: int = Field(50, ge=1)
    """Optimizer steps (SFT) or policy versions (GRPO) between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    max_failures: int = Field(3, ge=0)
    """Restarts of the worker group from its last checkpoint."""
    max_skipped_in_a_row: int = Field(3, ge=1)
    """Optimizer steps left out one after the other, since loss or gradient were not finite, that end the step."""
    max_skipped_fraction: float = Field(0.01, ge=0, le=1)
    """Share of all optimizer steps so far, those before a restart included, that may be left out; more end the step, once
    they are more than max_skipped_in_a_row in number."""
    probe_every: int = Field(0, ge=0)
    """Optimizer steps (SFT) or policy versions (GRPO) between looks at L-hat on fixed trajectories; 0 is off."""
    probe_data: str = ""
    """Of probe_every: the step of the run (`verify`) whose judged trajectories those are, of each question the first correct
    one."""
    probe_trajectories: int = Field(16, ge=1)
    """Of probe_every: how many."""
    probe_suffix: str = "paper"
    """As analyze.suffix."""
    probe_until: str = "</think>"
    """As analyze.until."""
    start_timeout_s: float = Field(120, gt=0)
    """A worker group that is not up by then counts as a controller failure, of which five end the step."""
    collective_timeout_s: float = Field(300, gt=0)
    step_timeout_s: float = Field(3600, gt=0)
    """A learner that is longer at one part of a step (a pass of an update, a checkpoint, a weight sync; waiting for trajectories
    has grpo.sample_timeout_s on top) hangs: it is ended, and all start again from the last checkpoint. A task that writes a
    training set and is longer at one shard ends the step."""


class SftConfig(Settings):
    """Supervised fine-tuning on verified trajectories: off-policy inner-loop paths."""

    outer_loss: Literal["all_tokens", "answer_only", "answer_only_detached"] = "all_tokens"
    """What the loss is of. `all_tokens`: every response token, the paper's SFT; `answer_only`: the final answer's tokens,
    whose gradient goes through the trajectory's keys and values (the paper's Eq. 8); `answer_only_detached`: the same
    loss with these as constants (Eq. 8 without its second-order path)."""
    answer_pattern: str = ""
    r"""Where the answer is, for `answer_only`: the first group of this regular expression's last match after thinking.
    Empty: the content of the last `\boxed{}`. Trajectories without are set aside and counted."""
    num_trajectories: int = Field(32, ge=1)
    """Distinct correct trajectories per question, the support-set size n (paper, Fig. 8)."""
    selection: Literal["first", "random", "shortest", "longest", "diverse"] = "first"
    """Which correct trajectories of a question those are: the first sampled (the paper's rule), or others; `diverse`:
    the first, then ever the one whose words differ most from all before."""
    length: Literal["any", "short", "medium", "long"] = "any"
    """Only trajectories of this third of their question's correct ones among the first pad_to, by length in the
    student's tokens."""
    match_length: bool = False
    """Keep only questions that have a trajectory in every third, and of each as many distinct ones as its smallest third
    has at most: sets of different `length` then differ in nothing else."""
    pad_to: int = Field(64, ge=1)
    """Of a question's first so many trajectories (of all policies together) the correct ones within max_length are
    counted; resampling pads to that count, whatever n."""
    policies: tuple[str, ...] = ()
    """Only trajectories of these policies (by policy_id's name part); empty takes all. Those of several policies are one
    set, ordered by sample index, then by policy_id: the order of the step's data does not matter."""
    batch_size: int = Field(64, ge=1)
    """Trajectories of one optimizer step, over all workers."""
    num_epochs: float = Field(2, gt=0)
    max_steps: int = Field(0, ge=0)
    """Stops earlier; 0 is off."""
    learning_rate: float = Field(2e-3, gt=0)
    warmup_steps: int = Field(10, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    max_length: int = Field(512, ge=2)
    """Trajectories that make longer examples (prompt and response tokens) cannot be chosen: they are set aside and
    counted."""
    examples_per_shard: int = Field(4096, ge=1)
    """Examples of one file of the training set: what a task holds while it writes one."""
    shuffle_shards: int = Field(8, ge=1)
    """Files whose examples are shuffled together: the learners' reading tasks hold the tokens of so many at once."""


class GrpoConfig(Settings):
    """Reinforcement learning on sampled trajectories: on-policy inner-loop paths."""

    num_steps: int = Field(30, ge=1)
    """Policy versions to make."""
    questions_per_step: int = Field(8, ge=1)
    num_trajectories: int = Field(32, ge=2)
    """Trajectories sampled per question, G. One trajectory has no group to be compared with."""
    num_updated: int = Field(32, ge=1)
    """Of those G, how many enter the policy loss (paper: num_update_sample_per_prompt); advantages come from all G."""
    selection: Literal["random", "max_variance", "difficulty", "diverse", "lhat_descent"] = "random"
    """Which ones: `random` (the paper's rule); `max_variance`: rewards as far apart as can be (PODS); `difficulty`: random
    ones, most of questions of which about half are correct, none where all or none are (num_updated is the mean over
    questions); `diverse`: the first, then ever the one whose tokens differ most from all before; `lhat_descent`: those
    along whose thinking, up to where they write the gold answer, its negative log-probability falls most (paper, 4.3)."""
    compute_matched: bool = False
    """A step asks questions_per_step * num_trajectories / num_updated questions: equally many trajectories are updated on,
    whatever num_updated is."""
    reward: Literal["correct", "paper"] = "correct"
    """`correct`: 1 for a correct answer, else 0; `paper`: 1 for a correct and 0 for a wrong one, less 1.5 and 1 where the
    response is not in `layout` (RaML, Eq. 21)."""
    layout: Literal["paper", "think"] = "paper"
    """What reward=paper takes for well-formed. `paper`: <think> block, <conclusion> block, a last line "The answer is
    \\boxed{...}"; `think`: <think> block, then a box."""
    loss: Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo"] = "grpo"
    """The policy loss: a published recipe (docs/grpo.md), which decides all that is null below."""
    advantage: Literal["standardized", "centered"] | None = None
    """Reward minus the group's mean, over its standard deviation (GRPO) or not (Dr. GRPO)."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] | None = None
    """Tokens of a minibatch weigh alike; sequences do; or tokens are added up over (sequences times max_tokens)."""
    clip_low: float | None = Field(None, gt=0, le=1)
    """Ratios are held at 1 - clip_low and 1 + clip_high."""
    clip_high: float | None = Field(None, gt=0)
    max_refills: int | None = Field(None, ge=0)
    """Dynamic sampling (DAPO): questions whose rewards are all equal leave the loss, and as many others are asked in their
    place, at most so many times in a step; 0 is off."""
    overlong_tokens: int | None = Field(None, ge=0)
    """Overlong shaping (DAPO): over the last so many of max_tokens the reward falls by up to 1; 0 is off."""
    correction: Literal["tis", "mis", "none"] = "tis"
    """What the learner's probability of a token over the engine's does to its loss: it is the weight, at most
    correction_cap (`tis`, truncated importance sampling), or 0 above it (`mis`, masked)."""
    correction_cap: float = Field(2.0, gt=0)
    kl_coefficient: float = Field(0.0, ge=0)
    """Weight of the divergence from the policy that the step starts from, a frozen second copy of which is then held."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    entropy_coefficient: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""
    gradient_variance_every: int = Field(0, ge=0)
    """Policy versions between measurements of how much the gradient varies with the draw of num_updated trajectories; 0
    is never. Each costs gradient_variance_draws + 1 further passes."""
    gradient_variance_draws: int = Field(8, ge=2)
    num_minibatches: int = Field(2, ge=1)
    """Optimizer steps per policy version."""
    learning_rate: float = Field(5e-4, gt=0)
    temperature: float = Field(1.0, gt=0)
    max_tokens: int = Field(96, ge=1)
    num_engines: int = Field(1, ge=1)
    max_staleness: int = Field(0, ge=0)
    """Policy versions that engines may be ahead of the learner, so that they work while it does. 0: synchronous; each
    trajectory is sampled by the very policy that it updates."""
    partial_rollouts: Literal["wait", "carry", "cut"] = "wait"
    """What new weights do to trajectories under way (with max_staleness > 0). `wait`: they come when all is finished, so
    that a trajectory has one version and results do not depend on timing; `carry`: it goes on under them, its tokens of
    several versions; `cut`: it ends there and leaves its group unjudged, which favours short ones."""
    max_engine_failures: int = Field(3, ge=0)
    """More failures in a row than these retire an engine's place; the others go on without it."""
    sync_tolerance: float = Field(1e-4, gt=0)
    """Largest difference of engine and learner log-probabilities on the probe after a weight sync (nats), where both
    compute in float32."""
    sync_tolerance_k3: float = Field(5e-3, gt=0)
    """Largest divergence of engine and learner on the probe (k3 estimate, nats per token), where one computes in bfloat16."""
    sync_check_every: int = Field(0, ge=0)
    """Syncs between such comparisons, of which the first is one; 0: every sync up to 512 MiB of weights, else every
    tenth."""
    weight_sync: Literal["object_store", "nccl"] = "object_store"
    """How weights get to the engines: through Ray's object store (any device; checksums), or from GPU to GPU."""
    sync_bucket_mib: float = Field(256, gt=0)
    """Weights travel in parts of so many MiB."""
    sample_timeout_s: float = Field(1800, gt=0)
    """A step's trajectories must be there by then: more than engine.stall_timeout_s + engine.start_timeout_s, so that a
    hung engine can be replaced."""


class EvaluateConfig(Settings):
    """Pass@k, G-Pass@k and mG-Pass@k on question sets."""

    sets: dict[str, str] = {}
    """Name -> question set, each as `data.path`."""
    num_samples: int = Field(16, ge=1)
    """Trajectories per question, n."""
    k: int = Field(8, ge=1)
    temperature: float = Field(0.6, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(-1, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1)
    max_tokens: int = Field(128, ge=1)
    stop: tuple[str, ...] = ()
    """As generate.stop."""
    bad_words: tuple[str, ...] = ()
    """As generate.bad_words: accuracy with and without `Wait` says whether reflection helps."""
    thinking_budget: int = Field(0, ge=0)
    """As generate.thinking_budget, with generate's defaults for what follows the cut."""
    budget_text: str = "\n</think>\n\n**Final Answer**\n\\boxed{"
    budget_answer_tokens: int = Field(64, ge=1)
    compare_judge: Literal["", "strict", "paper"] = ""
    """A second judge of the same trajectories: its accuracy and where the two disagree are reported beside."""
    num_engines: int | tuple[int, int] = 1
    published: Literal[
        "", "sft_qwen", "sft_distill", "grpo_zero", "grpo_cold", "qwen3_thinking", "qwen3_no_thinking"
    ] = ""
    """A row of the paper's results that is shown beside these, set for set (its Tables 2 and 3, its Fig. 11)."""
    num_bootstrap: int = Field(2000, ge=100)
    """Resamples of the questions behind each interval."""
    limit: int = Field(0, ge=0)
    """Questions of each set, from the first; 0 is all."""


Instrument = Literal[
    "lhat", "pseudo_update", "real_updates", "roles", "landscape", "interventions", "modes", "shorter", "features"
]
"""What `analyze` can measure with; each has a file in stages/instruments/ and a node of settings of its own."""


class AnalyzeConfig(Settings):
    """What the instruments that look along trajectories share."""

    instrument: Instrument = "lhat"
    """`lhat`: L-hat after every token of chosen trajectories; `pseudo_update`: what their tokens write into attention, as
    changes of weights, beside the gradient; `real_updates`: a trajectory's pseudo-update beside SGD on the answer and a
    distilled adapter; `roles`: what words of a kind do to L-hat, from the curves of an `lhat` step;
    `landscape`: L-hat on planes through the policy's weights; `interventions`: reflection words and others, each put in
    the other's place; `modes`: accuracy against tokens with thinking, without, and with thinking cut; `shorter`: accuracy
    behind trajectories that were shortened in several ways to the same budgets;
    `features`: what linear probes read of partial results, and the policy without it, in two domains."""
    num_questions: int = Field(24, ge=1)
    num_correct: int = Field(1, ge=0)
    """Correct trajectories per question that are looked at."""
    num_wrong: int = Field(1, ge=0)
    """Wrong trajectories per question that are looked at."""
    suffix: str = "paper"
    r"""Text between a trajectory's prefix and the answer: `paper` (`\n\n**Final Answer**\n\boxed{`, C.1), `boxed`
    (`\boxed{`), or any other text as it is."""
    until: str = "</think>"
    """Positions are probed up to and including this text; empty probes the whole response, as the released notebook does."""
    stride: int = Field(1, ge=1)
    """Tokens between two probed positions; the last one, and those before and at the first place where the answer is
    written, are always probed."""
    probe_memory_mib: float = Field(512, gt=0)
    """What one forward pass of the probe may hold beside the weights, MiB, as it is estimated from the policy's sizes: more
    means fewer passes."""
    num_workers: int = Field(1, ge=1)
    gpus_per_worker: float = Field(0, ge=0)
    """0 computes on CPU, else 1 or a part of one GPU, or gpus_per_policy."""
    gpus_per_policy: int = Field(1, ge=1)
    """GPUs that hold one policy together, each a part of its layers, where it is too large for one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    shard_timeout_s: float = Field(1800, gt=0)
    """Eight further trajectories must have been measured by then, or the step stops."""


class LhatConfig(Settings):
    """L-hat along the trajectory (analyze.instrument=lhat)."""

    ema_alpha: float = Field(0.01, gt=0, le=1)
    """The paper's smoothing, drawn beside the raw curve."""
    num_foils: int = Field(10, ge=0)
    """Wrong answers of as many tokens that each right one is held against; 0 leaves them out."""
    controls: tuple[Literal["own", "shuffled", "foreign", "spliced"], ...] = ("own", "shuffled", "foreign", "spliced")
    """Further curves of each trajectory: `own`, of a wrong trajectory its own answer; `shuffled`, the right answer along the
    same trajectory with its lines (or sentences) in another order; `foreign`, along a trajectory of another question;
    `spliced`, along that one with the bare answer written into it where this one writes it."""


class PseudoUpdateConfig(Settings):
    """Tokens as updates of W_v (analyze.instrument=pseudo_update)."""

    num_positions: int = Field(16, ge=1)
    """Tokens of a trajectory that are looked at, evenly spread: a forward and a backward pass and two forward ones each."""


class RealUpdatesConfig(Settings):
    """A trajectory's pseudo-update beside updates of W_v that training makes (analyze.instrument=real_updates)."""

    sgd_steps: int = Field(8, ge=1)
    """Steps of plain SGD on the negative log-probability of the question's answer, without the trajectory."""
    sgd_learning_rate: float = Field(0.05, gt=0)
    lora_rank: int = Field(4, ge=1)
    """Of the adapter on W_v of every layer that is distilled from the policy that has read the trajectory."""
    lora_steps: int = Field(60, ge=1)
    """Steps of Adam on the divergence of the two policies' distributions of the answer's tokens."""
    lora_learning_rate: float = Field(1e-2, gt=0)
    num_noise: int = Field(4, ge=1)
    """Random changes of the length of each of these."""


REGEX_RULE = "re:"
"""Begins a rule of roles.categories that is a regular expression."""


class RolesConfig(Settings):
    """What words of a kind do to L-hat (analyze.instrument=roles); the step's data is an `lhat` step."""

    categories: dict[str, tuple[str, ...]] = {
        "answer": ("final answer", "the answer is", r"re:\\boxed"),
        "reflection": (
            *("wait", "hold on", "alternatively", "however", "actually", "hmm", "retry", "recheck", "double-check"),
            *("let me check", "let's check", "let me verify", "on second thought"),
        ),
        "transition": (
            *(
                "therefore",
                "thus",
                "hence",
                "so",
                "since",
                "because",
                "then",
                "next",
                "first",
                "second",
                "finally",
                "now",
            ),
        ),
        "assertion": ("we have", "we get", "we know", "must be", "is equal to", "clearly", "it follows"),
        "calculation": (r"re:\d+(?:[.,]\d+)*", r"re:[-+*/=<>^]"),
        "formatting": (r"re:\n+", r"re:\*\*|\$|^#+"),
    }
    """Category -> rules: words, found whole and in any case of letters with or without a space before them, or `re:` and a
    regular expression. A token has the first category that finds it."""
    paper_words: tuple[str, ...] = (
        *(
            "wait",
            "Wait",
            "retry",
            "Retry",
            "recheck",
            "Recheck",
            "however",
            "However",
            "alternatively",
            "Alternatively",
        ),
    )
    """Words of the paper's own statistic, found by their tokens without a space before them, as the notebook does."""
    floor: float = Field(0.01, gt=0)
    """L-hat below this counts as this, nats per answer token: ratios of smaller ones are noise."""
    num_controls: int = Field(8, ge=1)
    """Windows at like places that a word is held against: the nearest of its length without a word of its category."""
    control_radius: int = Field(32, ge=1)
    """Tokens that such a window may be away."""


class LandscapeConfig(Settings):
    """L-hat on planes through the policy's weights (analyze.instrument=landscape)."""

    planes: tuple[Literal["random", "update"], ...] = ("random", "update")
    """`random`: two random directions on the scale of the weights, the same for all trajectories; `update`: minus the
    gradient of L-hat without the trajectory, and the trajectory's pseudo-update, both of W_v."""
    normalisation: Literal["filter", "tensor"] = "filter"
    """Of random directions. `filter`: every row as long as the weights' row, biases and norms unmoved (Li et al.);
    `tensor`: every tensor as long as the weights' (what the paper's notebook does)."""
    num_points: int = Field(11, ge=3)
    """Points of a side of the grid: odd, so that the policy itself is its middle."""
    radii: tuple[float, ...] = (1.0, 0.2)
    """How far the grids of a random plane go, in units of its directions."""
    update_radii: tuple[float, ...] = (2.0, 0.5)
    """How far those of an update plane go, in units of the pseudo-update's length."""
    num_prefixes: int = Field(3, ge=1)
    """Prefixes of the trajectory that L-hat is looked at behind: none of it, evenly more, all of it."""
    points_per_shard: int = Field(64, ge=1)
    """Grid points of one shard, the unit of work lost to a kill."""


class InterventionsConfig(Settings):
    """Words put in another's place (analyze.instrument=interventions); which words have which role say `roles`."""

    category: str = "reflection"
    """The category of roles.categories whose words are looked at."""
    neutral: tuple[str, ...] = ()
    """Words that they are held against, rules as in roles.categories; empty is every word of letters that has no role."""
    max_frequency_ratio: float | None = Field(None, ge=1)
    """How many times as frequent as its partner a word may be, or the partner as the word, over the chosen trajectories; a pair
    further apart is left out and counted; null is no limit."""
    newline: str = "\n"
    """Text that is put in a word's place as a third thing."""
    num_words: int = Field(2, ge=1)
    """Words of a trajectory that are looked at, evenly spread over those before the answer."""
    horizon: int = Field(8, ge=0)
    """Tokens that follow in the trajectory and are put behind what was put in; L-hat is looked at without them and with."""

    num_samples: int = Field(0, ge=0)
    """Continuations that are sampled from each such place, with and without the word, and judged: the interaction in
    accuracy beside that in L-hat. 0 samples none."""


class AnswersConfig(Settings):
    """How engines answer behind what an instrument made a response begin with (modes, shorter, and interventions with
    interventions.num_samples); `verify` says how answers are judged."""

    temperature: float = Field(0.6, ge=0)
    """0 decodes greedily."""
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(-1, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1)
    max_tokens: int = Field(128, ge=1)
    """Tokens that are sampled, behind those that were given."""
    stop: tuple[str, ...] = ()
    """As generate.stop."""
    cut_text: str = "\n</think>\n\n**Final Answer**\n\\boxed{"
    """In modes and shorter: what is put behind thinking that was cut, to end it and ask for the answer. Of responses
    without `</think>` it is also where their thinking ends."""
    num_engines: int | tuple[int, int] = 1


class ModesConfig(Settings):
    """One policy that thinks, does not, or is cut (analyze.instrument=modes)."""

    num_trajectories: int = Field(2, ge=1)
    """Trajectories of each question that are thinking and are cut: the first ones, whatever their verdicts."""
    num_samples: int = Field(4, ge=1)
    """Answers behind each cut; without thinking so many times modes.num_trajectories per question."""
    fractions: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Shares of each trajectory's thinking behind which the end of thought is forced."""
    budgets: tuple[int, ...] = (8, 16, 32)
    """Budget forcing: response tokens after which thinking that has not ended is cut."""
    delimiters: dict[str, str] = {
        "empty_thought": "<think>\n\n</think>\n\n",
        "conclusion": "Therefore, after all this, I believe the answer is",
    }
    """Name -> text that a response is made to begin with in order not to think: Qwen3's and QwQ's (paper, 3.3)."""


class ShorterConfig(Settings):
    """Trajectories shortened to the same budgets (analyze.instrument=shorter)."""

    fractions: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Budgets, as shares of the tokens of each trajectory's thinking; a summary's own length is one more."""
    ways: tuple[Literal["truncation", "random", "lhat"], ...] = ("truncation", "random", "lhat")
    """`truncation`: its first sentences; `random`: sentences deleted at random; `lhat`: first those whose absence raises
    L-hat of the right answer least."""
    num_samples: int = Field(4, ge=1)
    """Answers behind each shortened trajectory."""
    summary_policy: str = ""
    """A second policy, as policy.path, whose summaries of the thinking are a further way; empty leaves it out."""
    summary_draws: int = Field(1, ge=1)
    """Summaries of each trajectory; they count alike."""
    summary_temperature: float = Field(1.0, ge=0)
    """At which summaries are sampled, from all tokens."""
    summary_template: Literal["chat", "plain"] = "chat"
    """Of summary_policy: as prompt.template."""
    summary_instruction: str = (
        "Below are a question and somebody's reasoning about it. Summarise the reasoning so that one could go on from it,"
        " in as few words as you can. Do not say what the answer is.\n\n{problem}\n\n{reasoning}"
    )
    """Of summary_policy: its user turn; `{reasoning}` and, where it is there, `{problem}` are replaced."""
    summary_reads: int = Field(0, ge=0)
    """Most tokens of the reasoning that a summary is of, from its first one on, in summary_policy's tokens; 0 is all."""
    summary_tokens: int = Field(512, ge=1)
    """Most tokens of a summary, in summary_policy's tokens."""
    summary_max_model_len: int = Field(0, ge=0)
    """Of summary_policy: as engine.max_model_len, where that is not its own; 0 is that."""
    summary_published: Literal["", "qwen3_summarised"] = ""
    """Of summary_policy: as evaluate.published, beside accuracy behind summaries of evaluated trajectories."""


MINIATURE_RESULTS = "miniature"
NUMBER_AFTER_EQUALS = r"=\s*\$?(-?\d+(?:,\d{3})*(?:\.\d+)?)"


class FeaturesConfig(Settings):
    """Linear probes for partial results, and the policy without what they read (analyze.instrument=features)."""

    by: Literal["domain", "source", "level"] = "domain"
    """What of a question says its domain: its own field, the question set that it is of, or its level."""
    domains: tuple[str, ...] = ()
    """The domains that are looked at; empty is all that the data has. A single one is probed, and has no transfer."""
    results: str = NUMBER_AFTER_EQUALS
    """Regular expression whose first group is a partial result (the number behind a `=`), or `miniature`: the numbers that
    a line of the embedded task puts into a slot."""
    num_classes: int = Field(10, ge=2)
    """A partial result's class is its value modulo this; what is no whole number is left out."""
    num_results: int = Field(8, ge=1)
    """Partial results of a trajectory that are looked at, evenly spread."""
    held_out: float = Field(0.5, gt=0, lt=1)
    """Share of each domain's questions that no probe is trained on: probes are tested on them, and the policy asked them."""
    layers: tuple[int, ...] = ()
    """Layers, by number from 1, whose output is probed and projected; empty is all."""
    penalty: float = Field(0.01, gt=0)
    """Of the ridge regression behind a probe, on states of unit variance."""
    rank: int = Field(4, ge=1)
    """Dimensions of the subspace that is taken away, those that a probe's scores depend on most: fewer than there are classes
    among the results that it is trained on."""
    num_random: int = Field(3, ge=1)
    """Random subspaces of equal rank that it is held against, per layer."""
    max_tokens: int = Field(128, ge=1)
    """Response tokens of the greedy responses."""


class ReportConfig(Settings):
    """One self-contained page."""

    title: str = "RaML"


class GridConfig(Settings):
    """One of several grids that a sweep runs together."""

    space: dict[str, tuple[Any, ...]] = {}
    """As ablate.space, which every grid is varied over too."""
    steps: tuple[str, ...] = ()
    """The steps that its trials are for; they and what they build on are run. Empty is all."""


class AblateConfig(Settings):
    """Ray Tune over any setting of a run's steps (`raml ablate`)."""

    space: dict[str, tuple[Any, ...]] = {}
    """Dotted setting -> its values; every combination is a trial. On the command line `NAME=grid(1,2,4)`, `NAME=range(3)`."""
    grids: dict[str, GridConfig] = {}
    """Name -> a grid: several sweeps in one run, with one report; what their trials have in common is made once."""
    max_concurrent: int = Field(0, ge=0)
    """Trials side by side; 0 is as many as the cluster has room for."""
    scheduler: Literal["none", "asha"] = "none"
    """`asha` stops the trials whose metric is behind (Li et al. 2018). Refused where that would be unsound: over seeds, over
    settings that change what the metric is of, and where a trial has not exactly one GRPO step that they reach."""
    metric: Literal["grpo/reward"] = "grpo/reward"
    """What asha compares, the larger the better."""
    grace_steps: int = Field(10, ge=1)
    """Training steps (lines of metrics.jsonl) before which asha stops no trial."""
    most_steps: int = Field(1000, ge=1)
    """Training steps of the longest trial."""
    reduction_factor: float = Field(3, gt=1)
    """Of so many trials asha lets one go on at each of its rungs."""


class ClusterConfig(Settings):
    """Which Ray."""

    address: str = "local"
    """`local` starts Ray in this process; `auto` or `ray://…`, `host:port` joins a cluster. Under `ray job submit` always the job's."""
    num_cpus: int = Field(0, ge=0)
    """Logical CPUs of a local Ray; 0 takes the machine's, and never fewer than the two that learner and engine need."""
    object_store_mib: int = Field(400, ge=80)
    """Object store of a local Ray."""
    steps_at_once: int = Field(1, ge=1)
    """Steps of a run that do not build on one another run side by side, up to so many, while the cluster has the CPUs and
    GPUs that they ask for together. Seconds and memory of such steps are those of all that ran meanwhile."""
    wait_for_resources_s: float = Field(0, ge=0)
    """A step that needs more than Ray has asks the cluster's autoscaler for it and waits so long; then it is refused, with 0
    at once."""
    stop_timeout_s: float = Field(25, gt=0)
    """After SIGTERM learners get so long to end their step and save it; then the run ends without. Less than what sends
    the signal waits until it kills: 30 s for a pod, 3 s for `ray job stop` (RAY_JOB_STOP_WAIT_TIME_S)."""


class DrillConfig(Settings):
    """Faults on purpose, to see that a run comes through them (docs/faults.md)."""

    faults: str = ""
    """Words ROLE:RANK:STEP:HOW, for example `learner:1:3:kill9 pool:*:5:exit`; each befalls once. Empty: none."""
    folder: str = ""
    """Where it is noted what has befallen whom; empty is `drill` in the step's folder."""


class TrackingConfig(Settings):
    """MLflow."""

    uri: str = ""
    """Tracking server or database; MLFLOW_TRACKING_URI wins; empty is SQLite beside the runs."""
    experiment: str = "raml"
    enabled: bool = True

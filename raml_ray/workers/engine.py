"""One vLLM engine in this process: token ids in, token ids and their log-probabilities out.

vLLM is imported when the first engine starts (seconds), so that importing this module stays cheap.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raml_ray.settings import EngineConfig
from raml_ray.workers import engine_arguments, policy
from raml_ray.workers.sampling import Completion, Failure, FinishReason, Request, Sampling, Span, SteppedEngine, refusal
from raml_ray.workers.weights import Packed

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.outputs import CompletionOutput

logger = logging.getLogger(__name__)


class CannotServe(ValueError):
    """No engine can serve this policy with these settings: another attempt would end alike."""


class Engine(SteppedEngine):
    """vLLM behind a few calls."""

    def __init__(self, policy_path: str, settings: EngineConfig, *, seed: int, needs_text: bool = False) -> None:
        """Starts vLLM in this process (on several GPUs: one process per rank).

        With needs_text it reads along what it samples, as stop texts and bad words need it.

        Raises: CannotServe if the policy's configuration cannot be read, or needs_text and it has no tokenizer; what
        vLLM raises, which may be a ValueError, too, if memory is short.
        """
        engine_arguments.set_environment(policy_path)
        from transformers import AutoConfig
        from vllm import LLM
        from vllm.tokenizers.hf import get_cached_tokenizer

        self._settings, self._policy_path, self._version = settings, policy_path, 0
        self._needs_text, self._num_tokens, self._num_loads = needs_text, 0, 0
        self._ended: list[tuple[int, Completion]] = []
        """Responses that the next step gives, whatever else it does."""
        try:
            tokenizer = policy.load_tokenizer(policy_path) if needs_text else None
            config = AutoConfig.from_pretrained(policy_path)
        except ValueError as error:
            raise CannotServe(str(error)) from error
        # A sequence is scored by sampling a token after it, which is thrown away: one position more than is ever read.
        within = settings.max_model_len <= config.to_dict().get("max_position_embeddings", 0)
        os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = str(int(within))
        self._longest_scored = settings.max_model_len if within else settings.max_model_len - 1
        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            engine_arguments.start_fast_on_cpu(config.architectures or [], settings)
        set_num_threads = torch.set_num_threads
        if not on_gpu:
            torch.set_num_threads(settings.cpus_per_engine)
        try:
            self._llm: LLM | None = LLM(
                **engine_arguments.arguments(policy_path, settings, longest=self._longest_scored + 1, seed=seed)
            )
        finally:
            # vLLM's CPU worker replaces the function for the whole process by one that does nothing.
            torch.set_num_threads = set_num_threads
        self._vocab_size = int(self._vllm.llm_engine.model_config.get_vocab_size())
        # Handed over by hand: vLLM would load it by the class that config.json names, which may be another.
        self._vllm.llm_engine.output_processor.tokenizer = tokenizer and get_cached_tokenizer(tokenizer)
        self._vllm.llm_engine.set_weight_version(str(self._version))

    @property
    def _vllm(self) -> "LLM":
        if self._llm is None:
            raise ValueError("the engine has been closed")
        return self._llm

    @property
    def version(self) -> int:
        """Of the weights that it holds; 0 are those of the policy folder."""
        return self._version

    @property
    def policy_path(self) -> str:
        return self._policy_path

    @property
    def num_unfinished(self) -> int:
        return int(self._vllm.llm_engine.get_num_unfinished_requests()) + len(self._ended)

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def add(self, number: int, request: Request, sampling: Sampling) -> Failure | None:
        """As `SteppedEngine.add`; what fits into max_model_len ends a response early.

        Raises: ValueError for stop texts or bad words if the engine was started without needs_text.
        """
        from vllm.exceptions import VLLMValidationError
        from vllm.inputs.engine import tokens_input

        reason = refusal(request.prompt_token_ids, self._vocab_size, self._settings.max_model_len)
        if reason is not None:
            return Failure(reason)
        if sampling.needs_text and not self._needs_text:
            raise ValueError(
                f"stop={sampling.stop}, bad_words={sampling.bad_words}: an engine must be started with needs_text=True to"
                " know texts"
            )
        # Keys and values that older weights cached are never found again: requests under way forbid to drop them.
        prompt = tokens_input(request.prompt_token_ids, cache_salt=str(self._num_loads))
        params = engine_arguments.params_of(request, sampling, self._settings.max_model_len)
        if sampling.bad_words:
            params.update_from_tokenizer(self._vllm.llm_engine.output_processor.tokenizer)
        try:
            self._vllm.llm_engine.add_request(str(number), prompt, params)
        except VLLMValidationError as error:
            return Failure(f"vLLM refuses the request: {error}")
        return None

    def step(self) -> list[tuple[int, Completion]]:
        """As `SteppedEngine.step`. Raises: RuntimeError if vLLM gave a request up; what vLLM raises."""
        finished, self._ended = self._ended, []
        if self.num_unfinished:
            outputs = self._vllm.llm_engine.step()
            finished += [(int(output.request_id), _completion(output.outputs[0])) for output in outputs]
        self._num_tokens += sum(len(completion.token_ids) for _, completion in finished)
        return finished

    def cut(self) -> None:
        from vllm.v1.engine import FinishReason

        engine = self._vllm.llm_engine
        for state in list(engine.output_processor.request_states.values()):
            output = state.make_request_output([], None, FinishReason.ABORT, None).outputs[0]
            self._ended.append((int(state.external_req_id), _completion(output)))
            engine.abort_request([state.external_req_id])

    def token_logprobs(self, sequences: Sequence[list[int]]) -> list[np.ndarray]:
        """Of each sequence the log-probability of every token but the first, without temperature, nats, (T - 1,).

        Requests that are under way go on meanwhile.

        Raises: ValueError if a sequence has fewer than two tokens, or more than engine.max_model_len.
        """
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        for index, sequence in enumerate(sequences):
            self._check_scorable(sequence, f"sequence {index}")
            if len(sequence) < 2:
                raise ValueError(f"sequence {index}: one token has no predecessor to be predicted from")
        for index, sequence in enumerate(sequences):
            params = SamplingParams(
                temperature=0,
                max_tokens=1,
                prompt_logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self._vllm.llm_engine.add_request(f"scored {index}", tokens_input(list(sequence)), params)
        found: dict[str, np.ndarray] = {}
        while len(found) < len(sequences):
            for output in self._vllm.llm_engine.step():
                if output.request_id.isdigit():
                    self._ended.append((int(output.request_id), _completion(output.outputs[0])))
                else:
                    found[output.request_id] = np.asarray(output.prompt_logprobs.logprobs, dtype=np.float32)
        return [found[f"scored {index}"] for index in range(len(sequences))]

    def _check_scorable(self, sequence: Sequence[int], name: str) -> None:
        if len(sequence) > self._longest_scored:
            raise ValueError(
                f"{name} of {len(sequence)} tokens: engine.max_model_len={self._settings.max_model_len} allows"
                f" {self._longest_scored}; raise it"
            )
        reason = refusal(sequence, self._vocab_size, len(sequence) + 1)
        if reason is not None:
            raise ValueError(f"{name}: {reason}")

    def load_weights(self, buckets: Iterable[Packed], version: int) -> list[str]:
        """Takes over weights in the checkpoint's names; of each bucket the checksum of what arrived (`weights.checksum`).

        Requests that are under way go on under the new weights: the keys and values that they have are the old ones'
        and stay, so that their later tokens are drawn a little off the new policy.

        Raises: RuntimeError if the ranks of the engine received different weights.
        """
        self._vllm.collective_rpc("raml_start_load")
        checksums = []
        for arrays, layout in buckets:
            arrived = set(self._vllm.collective_rpc("raml_load_bucket", args=(arrays, layout)))
            if len(arrived) != 1:
                raise RuntimeError(f"the engine's ranks received different weights: checksums {sorted(arrived)}")
            checksums.append(str(arrived.pop()))
        self._vllm.collective_rpc("raml_finish_load")
        self._takes(version)
        return checksums

    def transfer(self, step: str, information: Mapping[str, Any], version: int) -> None:
        """One step of vLLM's native weight transfer, by the name that vLLM gives it, on every rank of the engine.

        The learner calls them in their order, and nothing may be sampled between the start and the finish of an update.
        """
        self._vllm.collective_rpc(step, kwargs=dict(information))
        if step == "finish_weight_update":
            self._takes(version)

    def _takes(self, version: int) -> None:
        self._num_loads += 1
        self._version = version
        self._vllm.llm_engine.set_weight_version(str(version))

    def module_outputs(self, token_ids: list[int]) -> dict[str, np.ndarray]:
        """Outputs of the modules for one sequence, in forward order, as `weights.learner_outputs` gives them."""
        from vllm import SamplingParams, TokensPrompt

        # Of what was cut the next step tells; it disturbs nobody here.
        if under_way := self._vllm.llm_engine.get_num_unfinished_requests():
            raise RuntimeError(f"{under_way} requests are under way: their tokens would be watched, too")
        self._check_scorable(token_ids, "sequence")
        if not self._settings.enforce_eager:
            raise ValueError("engine.enforce_eager=False: modules can only be watched with engine.enforce_eager=True")
        self._vllm.collective_rpc("raml_start_recording")
        params = SamplingParams(temperature=0, max_tokens=1, skip_reading_prefix_cache=True, detokenize=False)
        try:
            self._vllm.generate(TokensPrompt(prompt_token_ids=list(token_ids)), params, use_tqdm=False)
        finally:
            recorded: list[dict[str, np.ndarray]] = self._vllm.collective_rpc("raml_stop_recording")
        # Ranks that share a layer have the same of it; those of later layers come later.
        return {name: output for rank in recorded for name, output in rank.items()}

    def close(self) -> None:
        """Ends the engine, frees its memory and the process group that it made; it answers nothing afterwards."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            cleanup_dist_env_and_memory()


def _completion(output: "CompletionOutput") -> Completion:
    reasons: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "cut"}
    if output.finish_reason not in reasons:
        raise RuntimeError(f"vLLM gave a request up: finish_reason={output.finish_reason!r}")
    return Completion(
        token_ids=list(output.token_ids),
        logprobs=list(output.logprobs.logprobs),
        finish_reason=reasons[output.finish_reason],
        weight_versions=[Span(int(span.version), span.start, span.end) for span in output.weight_versions],
    )

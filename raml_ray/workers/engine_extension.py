"""What a vLLM worker is taught: to take weights from a flat array, and to show its modules' outputs.

vLLM mixes `WorkerExtension` into its worker class; the engine calls the methods by name.
"""

from collections import defaultdict
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from raml_ray.workers import engine_arguments, weights


def repack_tied_head(model: nn.Module) -> None:
    """Brings the CPU kernels' packed copy of a tied lm_head up to date; does nothing where there is none.

    vLLM's layer-wise reload renews every packed weight but this one: the new embedding would meet the old head.
    """
    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding) and "cpu_linear" in vars(module):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


class WorkerExtension:
    """Methods for `collective_rpc`. Only the worker that they are mixed into has the attributes they use."""

    model_runner: Any
    vllm_config: Any
    _raml_hooks: list[RemovableHandle]
    _raml_outputs: defaultdict[str, list[np.ndarray]]

    def raml_start_load(self) -> None:
        """From now on `raml_load_bucket` may be called, and nothing sampled until `raml_finish_load`.

        Raises: RuntimeError if this vLLM is not the one that the loading was written for.
        """
        engine_arguments.check_version()
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(self.model_runner.get_model())

    def raml_load_bucket(self, arrays: list[np.ndarray], layout: weights.Layout) -> str:
        """Loads some of the weights, in checkpoint names and shapes; the checksum of what arrived."""
        model = self.model_runner.get_model()
        tensors = weights.views(arrays, layout)
        if model.config.tie_word_embeddings:
            tensors.pop("lm_head.weight", None)  # the same tensor twice; the reload takes each parameter once
        with set_current_vllm_config(self.vllm_config):
            model.load_weights(iter(tensors.items()))
        return weights.checksum(arrays, layout)

    def raml_finish_load(self) -> None:
        """Puts what was loaded to use."""
        model = self.model_runner.get_model()
        with set_current_vllm_config(self.vllm_config):
            finalize_layerwise_reload(model, self.vllm_config.model_config)
            repack_tied_head(model)
        self.model_runner.reset_lora_state()
        self.model_runner.reset_encoder_cache()
        self.model_runner.reset_mm_cache()

    def raml_start_recording(self) -> None:
        """From now on every forward pass is recorded."""
        model = self.model_runner.get_model()
        self._raml_outputs = defaultdict(list)
        modules = weights.traced_modules(model) | {"lm_head": model.logits_processor}
        self._raml_hooks = [module.register_forward_hook(self._raml_recorder(name)) for name, module in modules.items()]

    def _raml_recorder(self, name: str) -> Any:
        def record(module: nn.Module, args: object, output: Tensor | tuple[Tensor, Tensor] | None) -> None:
            if output is None:  # the logits, which only the first of the ranks that share a layer gets
                return
            # A layer hands on its output as hidden state and residual, to be summed; norm has summed them already.
            if isinstance(output, tuple):
                output = output[0] + output[1] if name.startswith("layers.") else output[0]
            self._raml_outputs[name].append(weights.as_array(output))

        return record

    def raml_stop_recording(self) -> dict[str, np.ndarray]:
        """What was recorded: name -> (T, hidden), and of `lm_head` the logits of the last token, (V,).

        A rank of several has only the modules that it runs.
        """
        for hook in self._raml_hooks:
            hook.remove()
        recorded = {name: np.concatenate(parts) for name, parts in self._raml_outputs.items()}
        if "lm_head" in recorded:
            recorded["lm_head"] = recorded["lm_head"][-1]
        return recorded

"""OpenVINO's compiled graphs to be run: one as a whole, or a step as two halves of its rows at once."""

from __future__ import annotations

import openvino as ov
import torch

from darkroom.engine import samplers

HALVES = 2


class Whole:
    """A compiled graph to run. What it was given last it keeps, and is not given again: to hand over a tensor costs about as much as one
    operation of PyTorch, and of a step's tensors most stay the same."""

    def __init__(self, compiled: ov.CompiledModel):
        self._request = compiled.create_infer_request()
        self._given: dict[int, torch.Tensor] = {}  # by place; the request reads their memory

    def __call__(self, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        self.give(tensors)
        return torch.from_numpy(self._request.infer()[0])  # a copy: the request writes its next outcome into the same place

    def give(self, tensors: tuple[torch.Tensor, ...]) -> None:
        for place, tensor in enumerate(tensors):
            if tensor is not self._given.get(place):
                self._request.set_input_tensor(place, ov.Tensor(tensor.numpy(), shared_memory=True))
                self._given[place] = tensor

    def start(self, tensors: tuple[torch.Tensor, ...]) -> None:
        """Begin to run; `outcome` waits for the end."""
        self.give(tensors)
        self._request.start_async()

    def outcome(self) -> torch.Tensor:
        """Of what was started, in memory that the next run writes into."""
        self._request.wait()
        return torch.from_numpy(self._request.get_output_tensor(0).data)


def half_of(shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """A step's shapes with half of the rows: latents and pairs have them in the second place, coefficients and conditions in the first."""
    latents, (rows, width), pairs, *conditions = shapes
    half = rows // HALVES
    return (latents[0], half, *latents[2:]), (half, width), (pairs[0], half), *((half, *shape[1:]) for shape in conditions)


class Halves:
    """The graph of a step, compiled for half of its rows and in two streams, each on half of the threads; guidance and the sampler's step
    are then those of all rows.

    Threads that share an operation also share its rows, so much of what one wrote the other reads: where their cores have no cache in
    common, that takes longer than all the arithmetic but convolutions and products. Each half stays where it is.
    """

    def __init__(self, compiled: ov.CompiledModel):
        half = compiled.inputs[1].shape[0]  # of the coefficients
        self._parts = [slice(start * half, (start + 1) * half) for start in range(HALVES)]
        self._runs = [Whole(compiled) for _ in self._parts]
        self._apart = samplers.pairing([1] * half)
        self._conditions: list[torch.Tensor] = []  # as they were given last, and by half
        self._own: list[list[torch.Tensor]] = []

    def __call__(self, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        latents, coefficients, pairs, *conditions = tensors
        if len(conditions) != len(self._conditions) or any(new is not old for new, old in zip(conditions, self._conditions, strict=True)):
            self._conditions, self._own = conditions, [[tensor[part] for tensor in conditions] for part in self._parts]
        bare = samplers.bare(coefficients)
        for run, part, own in zip(self._runs, self._parts, self._own, strict=True):
            run.start((latents[:, part].contiguous(), bare[part], self._apart, *own))
        out = torch.cat([run.outcome()[1] for run in self._runs])
        return samplers.step(lambda x, t: out, latents, coefficients, pairs)

"""Opponent B, as somebody who knows the tricks writes it by hand: bfloat16 autocast, channels-last, images in memory
augmented by the batch, fused SGD, and the teacher's logits for the pass computed beforehand.
"""

from __future__ import annotations

import time

import setting
import torch
from plain_loop import kd_loss, optimizer_of
from setting import Images
from torch import Tensor, nn
from torch.nn import functional as F


class TunedTrial:
    """One student's trial. The views of the pass are drawn once, so that the teacher's logits can be kept."""

    def __init__(self, student: nn.Module, images: Images, *, batch_size: int, device: torch.device, seed: int):
        self.device, self.batch_size = device, batch_size
        self.student = student.to(device, memory_format=torch.channels_last)
        self.images = F.pad(images.images.to(device), [setting.PADDING] * 4)
        self.labels = images.labels.to(device)
        self.mean, self.std = images.mean.to(device), images.std.to(device)
        generator = torch.Generator().manual_seed(seed)
        count = len(images.labels)
        self.order = torch.randperm(count, generator=generator).to(device)
        self.corners = torch.randint(0, 2 * setting.PADDING + 1, (2, count), generator=generator).to(device)
        self.mirrored = (torch.rand(count, generator=generator) < 0.5).to(device)
        self.theirs = torch.empty(0)

    def views(self, samples: Tensor) -> Tensor:
        """Return the views of `samples`, 0..255, channels-last."""
        rows = torch.arange(32, device=self.device)
        down = (self.corners[0, samples][:, None] + rows)[:, None, :, None]
        across = self.corners[1, samples][:, None] + rows
        across = torch.where(self.mirrored[samples][:, None], across.flip(1), across)[:, None, None, :]
        channels = torch.arange(3, device=self.device)[None, :, None, None]
        picked = self.images[samples[:, None, None, None], channels, down, across]
        return picked.float().contiguous(memory_format=torch.channels_last)

    def ask(self, teacher: nn.Module) -> None:
        """Compute the teacher's logits for every view of the pass."""
        said = []
        with torch.no_grad(), torch.autocast(self.device.type, dtype=torch.bfloat16):
            for samples in torch.arange(len(self.labels), device=self.device).split(256):
                said.append(teacher(self.views(samples)))
        self.theirs = torch.cat(said).float()

    def train(self, *, warmup_steps: int = 0) -> float:
        """Train for one pass; return the images a second after `warmup_steps`."""
        batches = self.order.split(self.batch_size)
        batches = [samples for samples in batches if len(samples) == self.batch_size]
        optimizer, scheduler = optimizer_of(self.student, len(batches), fused=True)
        self.student.train()
        begun, seen = time.perf_counter(), 0
        for step, samples in enumerate(batches):
            if step == warmup_steps:
                self._finish()
                begun, seen = time.perf_counter(), 0
            inputs = (self.views(samples) - self.mean) / self.std
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                ours = self.student(inputs)
            loss = kd_loss(ours.float(), self.theirs[samples], self.labels[samples])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()
            seen += len(samples)
        self._finish()
        return seen / (time.perf_counter() - begun)

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

"""An ordinary training script: a tiny model, a run, a loop. Started again after a crash, it goes on where it was."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import torchkeep as tk


def main() -> None:
    """Train, with a snapshot after each epoch, and write the weights at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--beside", action="store_true", help="save beside training")
    parser.add_argument("--careless", action="store_true", help="do not wait for the disk")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    data = torch.Generator().manual_seed(1)
    batches = [(torch.randn(16, 4, generator=data), torch.randint(3, (16,), generator=data)) for _ in range(4)]

    with tk.Run(options.out / "run", engine=options.engine, durable=not options.careless) as run:
        if options.engine == "direct":
            run._archive.stream_from = 0  # so that packs as small as these are streamed
        start = run.resume(model=model, optimizer=optimizer)
        print(f"resumed: {start} epochs were done")
        for epoch in range(start, options.epochs):
            for index in torch.randperm(len(batches)).tolist():
                rows, labels = batches[index]
                loss = nn.functional.cross_entropy(model(rows), labels)
                optimizer.zero_grad()
                loss.backward()
                with run.guard():
                    optimizer.step()
            run.log(epoch=epoch, val_loss=loss)
            if options.beside:
                run.save(epoch, blocking=False)
            else:
                run.save(epoch)
    tk.save(model, options.out / "weights.safetensors")


if __name__ == "__main__":
    main()

"""Data sets cut to a few images."""

from torch.utils.data import Dataset


class FirstImages(Dataset):
    """The first images of a data set."""

    def __init__(self, dataset, count: int) -> None:
        self.dataset, self.count, self.source = dataset, count, dataset.source

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        return self.dataset[index]

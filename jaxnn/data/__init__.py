"""The data sets, as NumPy arrays: digits; MNIST and Fashion-MNIST from IDX files or tensorflow-datasets' copies."""

from jaxnn.data.dataset import DATASETS as DATASETS
from jaxnn.data.dataset import Dataset as Dataset
from jaxnn.data.dataset import Split as Split
from jaxnn.data.dataset import load as load
from jaxnn.data.idx import DataError as DataError

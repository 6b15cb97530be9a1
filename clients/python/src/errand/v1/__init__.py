"""The messages of the contract, generated from `proto/errand/v1`."""

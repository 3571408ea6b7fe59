"""LLaMA-Factory as a host: every dataset formatter is a ``formatting`` of its dataset_info.json."""

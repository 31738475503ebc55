"""Preference objectives beside RPO and DPO, one family per module; `registry` lists them all."""

"""Attention kernels: each computes the rule of `model.attention` on one kind of device."""

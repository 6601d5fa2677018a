"""The wire contract of premotor, version 1: policy.proto and the code generated from it."""

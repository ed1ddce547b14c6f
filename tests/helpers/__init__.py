"""What tests share: oracles, twins, recorded numbers, small runs."""

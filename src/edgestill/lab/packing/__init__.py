"""From a trained student to a bundle: export, quantise, calibrate, pack."""

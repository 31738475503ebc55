"""Gold-reward experiments: preferences labelled by a known reward, so that overoptimization can be measured.

Gao, Schulman and Hilton 2023; Coste et al. 2024; the controlled-sentiment task of Rafailov et al. 2023.
"""

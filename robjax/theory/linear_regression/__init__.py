from robjax.theory.linear_regression.minimisers import *

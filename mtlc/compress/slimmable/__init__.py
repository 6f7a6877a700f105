"""Networks whose widths are chosen after training: conversion, training, evaluation and search (ECMT-style)."""

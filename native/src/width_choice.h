/* Chooses an encoder and a width for every decoder, from a preference over the tasks and a budget.
 *
 * The rule, and why it is so, is in the Python runtime's width_choice.py. Both choose alike, bit for bit: sums are
 * made in the same order, and the build forbids the compiler to fuse products into them. */
#ifndef MTLC_WIDTH_CHOICE_H
#define MTLC_WIDTH_CHOICE_H

#include "manifest.h"

/* A task's decoder at one width, behind one encoder. */
typedef struct choice_decoder {
    double width, cost, gain;
} choice_decoder;

/* An encoder to choose from: the decoders of every task, from narrow to wide. */
typedef struct choice_encoder {
    double cost;
    choice_decoder **decoders; /* by task */
    size_t *counts;
} choice_encoder;

typedef struct choice {
    bool found;
    size_t encoder;
    size_t *places; /* by task, among its decoders */
    double cost, gain;
    double least, widest; /* what the cheapest that obeys costs, and the dearest of all */
} choice;

/* The combination within `budget` that gains most; of equals the one that costs least. `preference` sums to 1. A
 * `share` of the widest's cost is the budget where it is above 0. Memory is the check's. */
choice choose_widths(check *of, const choice_encoder *encoders, size_t encoder_count, size_t task_count,
                     const double *preference, double budget, double share);

/* The preferences so that they sum to 1. Refuses with MTLC_PREFERENCE what is no number, below zero, or all zeros. */
void normalise_preference(check *of, double *preference, size_t task_count);

#endif

/* What it takes to run a set of tasks: the programs that they need, and tensors that are bound once. */
#ifndef MTLC_PLAN_H
#define MTLC_PLAN_H

#include "session.h"

typedef struct step {
    const program *of;
    ort_session *loaded;
    size_t input_count, output_count;
    const char **input_names, **output_names; /* as the file calls them */
    size_t *input_ids, *output_ids;           /* NO_TENSOR for a constant of the bundle's */
    ort_value **inputs, **outputs;
} step;

typedef struct bound_input {
    mtlc_view view;
    void *own; /* memory of the plan's own, if it has some */
    bool set;
} bound_input;

struct mtlc_plan {
    arena memory;
    mtlc_session *session;
    step *steps;
    size_t step_count;
    ort_value **values; /* by tensor */
    bool *wanted;       /* by task */
    mtlc_view *results; /* by task, once it has run */
    bound_input *inputs;
    ort_value **constants;
    size_t constant_count;
    bool warm; /* the tensors between the programs are bound */
};

/* Frees a value and forgets it. */
void release_value(const mtlc_plan *plan, ort_value **value);
/* Forgets the tensors between the programs. Those of inputs stay. */
void cool_plan(mtlc_plan *plan);
/* Points every step that reads the tensor to its value. */
void connect_tensor(mtlc_plan *plan, size_t tensor);
/* Refuses unless all inputs are there, and a name of a dimension stands for one size wherever it is used. */
mtlc_code check_inputs(const mtlc_plan *plan, mtlc_error *error);

#endif

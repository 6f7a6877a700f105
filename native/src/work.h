/* What of an ONNX file's constants is followed: names, tensors, and what small operators make of them. */
#ifndef MTLC_WORK_H
#define MTLC_WORK_H

#include "graph_check.h"

#define MAX_TENSOR_BYTES ((double)(1 << 30))
enum { MAX_STEP = 1 << 16, FOLLOWED = 64, ITEM = 4, RAW_BYTES = 8 * FOLLOWED };
enum { DATA_FLOAT = 1, DATA_INT32 = 6, DATA_INT64 = 7 };

/* The numbers of a constant; `at` is NULL where they are not followed. */
typedef struct constant {
    double *at;
    size_t count;
} constant;

/* What is known of names in a graph, and in those around it. */
typedef struct scope {
    const struct scope *outer;
    names known;
    constant *values; /* by the name's number */
    size_t room;
} scope;

typedef struct attribute {
    text name;
    constant numbers;
    struct attribute *before;
} attribute;

typedef struct content_list {
    buffer content;
    struct content_list *next;
} content_list;

typedef struct node {
    text operator_of;
    texts inputs, outputs;
    attribute *attributes; /* the last one first */
    content_list *graphs, *sparse;
    bool has_tensor;
    buffer tensor;
    struct node *next;
} node;

typedef struct work {
    check *of;
    const char *name, *folder;
    double made;
} work;

void refuse_work(const work *by, text operator_of, const char *why) NEVER_RETURNS;
void refuse_damage(const work *by) NEVER_RETURNS;

/* Counts a tensor of so many numbers. */
void add_tensor(work *by, text operator_of, double elements);

/* What is known of a name; false where nothing is: it follows from an input. */
bool find_constant(const scope *in, text name, constant *found);
void set_constant(const work *by, scope *in, text name, constant value);

double product(const double *numbers, size_t count);
/* Adds the numbers of a field, packed or not, to `listed`; those beyond its room are only counted. */
void list_numbers(const work *by, const field *part, double *listed, size_t room, size_t *count, bool with_sign);
/* Counts a tensor that is stored sparse: engines make it whole. */
void count_sparse(work *by, buffer content);
/* A tensor's name, and its numbers where they are few and of a type that sizes have. Refuses one that says to be larger
 * than what is stored: the smallest numbers are two a byte. */
constant read_tensor(work *by, buffer content, text *name);

/* An operator, with its attributes. */
node *read_node(const work *by, buffer content);
const constant *attribute_of(const node *of, const char *name);

/* The numbers of what a node makes of constants. `read` has those of its inputs. */
constant value_of(work *by, const node *of, const constant *read);
bool is_one_of(text name, const char *const *known);

#endif

/* A bundle's manifest, as docs/bundle.md describes it, read and checked. */
#ifndef MTLC_MANIFEST_H
#define MTLC_MANIFEST_H

#include "names.h"
#include "picture_fit.h"

#include <stdint.h>

/* How much a bundle may hold: the numbers of mtlc/runtime/bundle/limits.py. */
#define MAX_MANIFEST_BYTES ((int64_t)8 << 20)
#define MAX_TOTAL_BYTES ((int64_t)8 << 30)
#define MAX_ELEMENTS ((int64_t)1 << 31)
enum {
    MAX_FILES = 10000,
    MAX_NAME = 1000,
    MAX_TASKS = 1000,
    MAX_PROGRAMS = 10000,
    MAX_ENCODERS = 4000,
    MAX_DECODERS = 64,
    MAX_EXPERTS = 100000,
    FREE_TENSORS = 20000,
    TENSORS_A_NAME = 16,
    TENSORS_AGAIN = 4
};

typedef struct texts {
    text *at;
    size_t count;
} texts;

/* Numbers by name, in the file's order. */
typedef struct numbers {
    text *names;
    double *at;
    size_t count;
} numbers;

typedef struct shape {
    int rank;
    int64_t at[MTLC_MAX_RANK]; /* -1 where a name stands */
    text named[MTLC_MAX_RANK];
} shape;

typedef struct file_info {
    text name;
    const char *sha256;
    int64_t bytes;
} file_info;

typedef struct tensor {
    text name;
    shape shape;
    mtlc_dtype dtype;
} tensor;

/* How a detector's output becomes boxes: what of it must fit the output. */
typedef struct detection {
    int64_t height, width, anchors;
    int box_columns;
    size_t name_count; /* 0: none are given */
    bool named;
} detection;

typedef struct task {
    text name;
    tensor output;
    text kind, metric, unit;
    texts classes;
    bool has_classes;
    detection *postprocess;
    text decoder;
    bool has_decoder;
} task;

typedef struct experts {
    text file;
    int64_t offset, stride, count, width, hidden, bytes;
} experts;

typedef struct program {
    text name, file;
    texts inputs, outputs, tasks;
    size_t *input_ids, *output_ids; /* numbers of the tensors, see `manifest.tensors` */
    text *constant_names;
    int64_t *constants;
    size_t constant_count;
    text *renamed, *in_file; /* tensors that the file calls otherwise */
    size_t renamed_count;
    experts *experts;
    int64_t macs; /* -1 where it is not said */
    uint64_t *task_bits;
} program;

typedef struct configuration {
    text name;
    texts programs;
    bool has_encoder;
    text encoder;
    numbers decoders;
} configuration;

typedef struct decoder {
    double width, metric;
    texts programs;
} decoder;

typedef struct decoders {
    text task;
    decoder *at;
    size_t count;
} decoders;

typedef struct encoder {
    text name;
    double *widths;
    size_t width_count;
    texts programs;
    decoders *decoders; /* in the file's order; `by_task` in that of the tasks, once checked */
    size_t decoder_count;
    decoders **by_task;
} encoder;

typedef struct widths {
    texts stages;
    numbers reference;
    text *better_names;
    bool *better; /* by the file's order; `higher_is_better` by that of the tasks, once checked */
    size_t better_count;
    encoder *encoders;
    size_t encoder_count;
    double *reference_by_task;
    bool *higher_by_task;
} widths;

typedef struct engine_file {
    text program_file, file;
} engine_file;

typedef struct openvino {
    text *program_files, *files;
    size_t count;
    text weights;
    int64_t shared_bytes;
} openvino;

typedef struct preprocessing {
    float scale, mean[3], std[3];
    enum { COLOR_RGB, COLOR_BGR, COLOR_L } color;
    resize_kind resize;
    uint8_t fill; /* of what a picture that is padded does not cover */
} preprocessing;

typedef struct manifest {
    task *tasks;
    size_t task_count, mask_words;
    tensor *inputs;
    size_t input_count;
    program *programs;
    size_t program_count;
    file_info *files;
    size_t file_count;
    configuration *configurations;
    size_t configuration_count;
    preprocessing *preprocessing;
    widths *widths;
    engine_file *engines;
    size_t engine_count;
    openvino *openvino;
    bool full_range_int8;
    names tensors, task_names, program_names, file_names;
    size_t *input_ids, *task_output_ids;
    char sha256[65]; /* of manifest.json */
} manifest;

/* Reads and checks a manifest.json. What is read lies in the check's arena. */
manifest *read_manifest(check *of, const char *data, size_t bytes);

/* Whether every configuration makes each task's output of tensors that were made before. Called by read_manifest. */
void check_manifest(check *of, manifest *in);
void check_postprocessing(check *of, const manifest *in);
void check_widths(check *of, manifest *in);

/* What `programs` make, run in this order. For check_widths. */
typedef struct flow {
    check *of;
    manifest *in;
    size_t work, most;
    size_t **places;    /* layers of tensors that are there, the innermost first: by tensor the program + 2, 1: input */
    size_t place_count;
} flow;

enum { OF_INPUT = 1, OF_PROGRAM = 2 };

size_t most_work(const manifest *in);
void count_work(flow *of, size_t tensors);
void flow_program(flow *of, size_t program, size_t *made, const char *inside);
void check_outputs(flow *of, const size_t *made, const char *inside);
bool has_task(const uint64_t *bits, size_t task);

#endif

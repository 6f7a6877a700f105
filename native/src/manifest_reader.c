/* Reads a bundle's manifest strictly: everything in it is checked, by hand and by key. */
#include "characters.h"
#include "manifest_sections.h"
#include "sha256.h"

#include <math.h>
#include <string.h>

static const char *const KINDS[] = {"labels", "scalar", "normals", "probability", "boxes", "unknown", NULL};

static void read_task(check *of, const json *value, const key *at, void *into)
{
    task *made = into;
    be_table(of, value, at);
    made->name = at->name;
    READ(made->output.name, read_name, value, "output", at);
    READ(made->output.shape, read_shape, value, "shape", at);
    READ(made->output.dtype, read_dtype, value, "dtype", at);
    NEED(kind, value, "kind", at);
    made->kind = read_choice(of, kind, &kind_at, KINDS);
    READ(made->metric, read_name, value, "metric", at);
    READ(made->unit, read_name, value, "unit", at);
    const json *classes = allow(value, "classes"), *how = allow(value, "postprocess");
    const json *decoder = allow(value, "decoder");
    if (classes != NULL) {
        const key here = key_named(at, TEXT("classes"));
        made->classes = read_names(of, classes, &here);
        made->has_classes = true;
    }
    if (how != NULL) {
        const key here = key_named(at, TEXT("postprocess"));
        made->postprocess = read_postprocess(of, how, &here);
    }
    if (decoder != NULL) {
        const key here = key_named(at, TEXT("decoder"));
        made->decoder = read_file_name(of, decoder, &here);
        made->has_decoder = true;
    }
}

static void read_named_task(check *of, const json *value, const key *at, void *into)
{
    if (!is_identifier(at->name)) {
        refuse_key(of, MTLC_KEY_VALUE, at, "cannot be a task's name");
    }
    read_task(of, value, at, into);
}

static void read_input(check *of, const json *value, const key *at, void *into)
{
    tensor *made = into;
    be_table(of, value, at);
    READ(made->name, read_name, value, "name", at);
    READ(made->shape, read_shape, value, "shape", at);
    READ(made->dtype, read_dtype, value, "dtype", at);
}

static experts *read_experts(check *of, const json *value, const key *at)
{
    experts *made = take(of, 1, sizeof *made);
    be_table(of, value, at);
    READ(made->file, read_file_name, value, "file", at);
    READ(made->offset, read_whole, value, "offset", at);
    NEED(stride, value, "stride", at);
    made->stride = read_whole(of, stride, &stride_at);
    READ(made->count, read_whole, value, "count", at);
    READ(made->width, read_whole, value, "width", at);
    READ(made->hidden, read_whole, value, "hidden", at);
    /* 2^30 on a side would be 2^63 bytes, more than any stride says. */
    const bool large = made->width >= 1 << 30 || made->hidden >= 1 << 30;
    made->bytes = large ? INT64_MAX : 4 * (2 * made->width * made->hidden + made->width + made->hidden);
    if (made->count < 1 || made->width < 1 || made->hidden < 1 || large || made->stride < made->bytes) {
        refuse_key(of, MTLC_EXPERTS, at, "has experts that do not fit their stride");
    }
    return made;
}

typedef struct constant {
    text name;
    int64_t value;
} constant;

static void read_constant(check *of, const json *value, const key *at, void *into)
{
    *(constant *)into = (constant){at->name, read_whole(of, value, at)};
}

typedef struct pair {
    text name, value;
} pair;

static void read_pair(check *of, const json *value, const key *at, void *into)
{
    *(pair *)into = (pair){at->name, read_name(of, value, at)};
}

static void read_file_pair(check *of, const json *value, const key *at, void *into)
{
    *(pair *)into = (pair){at->name, read_file_name(of, value, at)};
}

static void read_program(check *of, const json *value, const key *at, void *into)
{
    program *made = into;
    be_table(of, value, at);
    READ(made->name, read_name, value, "name", at);
    READ(made->file, read_file_name, value, "file", at);
    READ(made->inputs, read_names, value, "inputs", at);
    READ(made->outputs, read_names, value, "outputs", at);
    READ(made->tasks, read_names, value, "tasks", at);
    constant *constants;
    const key constants_at = key_named(at, TEXT("constants")), names_at = key_named(at, TEXT("names"));
    made->constant_count =
        read_table(of, allow(value, "constants"), &constants_at, sizeof *constants, &constants, read_constant);
    made->constant_names = take(of, made->constant_count, sizeof *made->constant_names);
    made->constants = take(of, made->constant_count, sizeof *made->constants);
    for (size_t i = 0; i < made->constant_count; i++) {
        made->constant_names[i] = constants[i].name;
        made->constants[i] = constants[i].value;
    }
    pair *renamed;
    made->renamed_count = read_table(of, allow(value, "names"), &names_at, sizeof *renamed, &renamed, read_pair);
    made->renamed = take(of, made->renamed_count, sizeof *made->renamed);
    made->in_file = take(of, made->renamed_count, sizeof *made->in_file);
    for (size_t i = 0; i < made->renamed_count; i++) {
        made->renamed[i] = renamed[i].name;
        made->in_file[i] = renamed[i].value;
    }
    const json *layer = allow(value, "experts"), *macs = allow(value, "macs");
    if (layer != NULL) {
        const key here = key_named(at, TEXT("experts"));
        made->experts = read_experts(of, layer, &here);
    }
    const key macs_at = key_named(at, TEXT("macs"));
    made->macs = macs == NULL ? -1 : read_whole(of, macs, &macs_at);
}

static void read_file(check *of, const json *value, const key *at, void *into)
{
    file_info *made = into;
    be_table(of, value, at);
    made->name = at->name;
    NEED(sha256, value, "sha256", at);
    const text digest = read_name(of, sha256, &sha256_at);
    if (digest.length != 64 || strspn(digest.data, "0123456789abcdef") != 64) {
        refuse_key(of, MTLC_KEY_VALUE, at, "has no SHA-256 in lower-case hexadecimal");
    }
    const json *bytes = json_get(value, "bytes");
    if (bytes == NULL || bytes->kind != JSON_WHOLE || bytes->whole < 0) {
        refuse_key(of, MTLC_KEY_VALUE, at, "must have bytes, a whole number, zero or more");
    }
    made->sha256 = digest.data;
    made->bytes = bytes->whole;
}

static void read_named_file(check *of, const json *value, const key *at, void *into)
{
    check_file_name(of, at->name, at);
    read_file(of, value, at, into);
}

/* One number for each channel, or one for all. */
static void read_channels(check *of, const json *table, const char *name, const key *inside, int channels, double first,
                          double into[3])
{
    const key at = key_named(inside, text_of(name));
    const json *value = json_get(table, name);
    size_t count = 1;
    into[0] = first;
    if (value != NULL && value->kind == JSON_LIST) {
        count = 0;
        for (const json *one = value->first; one != NULL; one = one->next, count++) {
            const key here = key_placed(&at, count);
            const double number = read_finite(of, one, &here);
            if (count < 3) {
                into[count] = number;
            }
        }
    } else if (value != NULL) {
        const key here = key_placed(&at, 0);
        into[0] = read_finite(of, value, &here);
    }
    if (count != 1 && count != (size_t)channels) {
        refuse_key(of, MTLC_KEY_VALUE, &at, "has %zu values: give one, or one for each of %d channels", count,
                   channels);
    }
    for (int i = (int)count; i < 3; i++) {
        into[i] = into[0];
    }
}

#define PADDING 114.0 /* the value of pixels that a picture does not cover, unless the manifest says another */

static preprocessing *read_preprocessing(check *of, const json *value, const key *at)
{
    static const char *const known[] = {"scale", "mean", "std", "color", "layout", "resize", "fill", NULL};
    static const char *const resizes[] = {"stretch", "pad", "pad_end", NULL};
    static const char *const colors[] = {"RGB", "BGR", "L", NULL}, *const layouts[] = {"NCHW", NULL};
    preprocessing *made = take(of, 1, sizeof *made);
    double mean[3], std[3];
    be_table(of, value, at);
    be_known_keys(of, value, at, known, MTLC_KEY_UNKNOWN);
    const json *color = json_get(value, "color"), *layout = json_get(value, "layout");
    const json *scale = json_get(value, "scale");
    if (color != NULL) {
        const key here = key_named(at, TEXT("color"));
        const text chosen = read_choice(of, color, &here, colors);
        made->color = text_equal(chosen, TEXT("L")) ? COLOR_L : text_equal(chosen, TEXT("BGR")) ? COLOR_BGR : COLOR_RGB;
    }
    const int channels = made->color == COLOR_L ? 1 : 3;
    read_channels(of, value, "mean", at, channels, 0, mean);
    read_channels(of, value, "std", at, channels, 1, std);
    for (int i = 0; i < 3; i++) {
        if (std[i] <= 0) {
            refuse_key(of, MTLC_KEY_VALUE, at, "must have a std above zero");
        }
        made->mean[i] = (float)mean[i];
        made->std[i] = (float)std[i];
    }
    const key scale_at = key_named(at, TEXT("scale")), layout_at = key_named(at, TEXT("layout"));
    made->scale = scale == NULL ? 1.0f : (float)read_finite(of, scale, &scale_at);
    const key fill_at = key_named(at, TEXT("fill")), resize_at = key_named(at, TEXT("resize"));
    const json *fill = json_get(value, "fill"), *resize = json_get(value, "resize");
    const double filled = fill == NULL ? PADDING : read_finite(of, fill, &fill_at);
    if (!(filled >= 0 && filled <= 255)) {
        refuse_key(of, MTLC_KEY_VALUE, &fill_at, "must be the value of a pixel, from 0 to 255");
    }
    made->fill = (uint8_t)rint(filled);
    if (layout != NULL) {
        read_choice(of, layout, &layout_at, layouts);
    }
    if (resize != NULL) {
        const text chosen = read_choice(of, resize, &resize_at, resizes);
        made->resize = text_equal(chosen, TEXT("stretch")) ? RESIZE_STRETCH
                       : text_equal(chosen, TEXT("pad"))   ? RESIZE_PAD
                                                           : RESIZE_PAD_END;
    }
    return made;
}

static void read_configuration(check *of, const json *value, const key *at, void *into)
{
    configuration *made = into;
    be_table(of, value, at);
    const json *encoder = allow(value, "encoder"), *decoders = allow(value, "decoders");
    if ((encoder == NULL) != (decoders == NULL)) {
        refuse_key(of, MTLC_KEY_MISSING, at, "has one of encoder and decoders: it needs both or neither");
    }
    READ(made->name, read_name, value, "name", at);
    READ(made->programs, read_names, value, "programs", at);
    if (encoder != NULL) {
        const key encoder_at = key_named(at, TEXT("encoder")), decoders_at = key_named(at, TEXT("decoders"));
        made->encoder = read_name(of, encoder, &encoder_at);
        made->has_encoder = true;
        made->decoders = read_numbers(of, decoders, &decoders_at);
    }
}

static void read_sizes(check *of, const json *value, const key *at, void *into)
{
    int64_t sizes[3] = {0};
    (void)into;
    be_list(of, value, at, SIZE_MAX);
    size_t place = 0;
    for (const json *one = value->first; one != NULL; one = one->next, place++) {
        const key here = key_placed(at, place);
        const int64_t size = read_whole(of, one, &here);
        if (place < 3) {
            sizes[place] = size;
        }
    }
    if (place != 3 || sizes[0] < 1 || sizes[0] > sizes[1] || sizes[1] > sizes[2]) {
        refuse_key(of, MTLC_KEY_VALUE, at, "must be three rising sizes, smallest, usual and largest");
    }
}

/* Such as "8.6": one or two digits, a point, a digit. */
static bool is_capability(text of)
{
    const bool two = of.length == 4;
    bool good = of.length == 3 || two;
    for (size_t i = 0; good && i < of.length; i++) {
        good = i == 1u + two ? of.data[i] == '.' : of.data[i] >= '0' && of.data[i] <= '9';
    }
    return good;
}

static void read_engine(check *of, const json *value, const key *at, void *into)
{
    static const char *const precisions[] = {"fp32", "fp16", "int8", NULL};
    static const char *const modules[] = {"tensorrt", "tensorrt_rtx", NULL};
    engine_file *made = into;
    char *sizes;
    made->program_file = at->name;
    be_table(of, value, at);
    NEED(capabilities, value, "compute_capabilities", at);
    const texts listed = read_names(of, capabilities, &capabilities_at);
    bool good = listed.count > 0;
    for (size_t i = 0; i < listed.count; i++) {
        good = good && is_capability(listed.at[i]);
    }
    if (!good) {
        refuse_key(of, MTLC_KEY_VALUE, &capabilities_at, "must be one or more such as '8.6'");
    }
    READ(made->file, read_file_name, value, "file", at);
    NEED(precision, value, "precision", at);
    read_choice(of, precision, &precision_at, precisions);
    NEED(module, value, "module", at);
    read_choice(of, module, &module_at, modules);
    NEED(version, value, "version", at);
    read_name(of, version, &version_at);
    const json *gpu = allow(value, "gpu");
    if (gpu != NULL) {
        const key here = key_named(at, TEXT("gpu"));
        read_name(of, gpu, &here);
    }
    const key dimensions_at = key_named(at, TEXT("dimensions"));
    read_table(of, allow(value, "dimensions"), &dimensions_at, 1, &sizes, read_sizes);
}

static openvino *read_openvino(check *of, const json *value, const key *at)
{
    openvino *made = take(of, 1, sizeof *made);
    pair *files;
    be_table(of, value, at);
    const key files_at = key_named(at, TEXT("files"));
    made->count = read_table(of, allow(value, "files"), &files_at, sizeof *files, &files, read_file_pair);
    made->program_files = take(of, made->count, sizeof *made->program_files);
    made->files = take(of, made->count, sizeof *made->files);
    for (size_t i = 0; i < made->count; i++) {
        made->program_files[i] = files[i].name;
        made->files[i] = files[i].value;
    }
    READ(made->weights, read_file_name, value, "weights", at);
    READ(made->shared_bytes, read_whole, value, "shared_bytes", at);
    NEED(half, value, "half", at);
    read_truth(of, half, &half_at);
    NEED(version, value, "version", at);
    read_name(of, version, &version_at);
    return made;
}

static bool read_quantization(check *of, const json *value, const key *at)
{
    static const char *const precisions[] = {"int8", NULL}, *const ranges[] = {"full", "reduced", NULL};
    be_table(of, value, at);
    NEED(precision, value, "precision", at);
    read_choice(of, precision, &precision_at, precisions);
    NEED(target, value, "target", at);
    read_name(of, target, &target_at);
    NEED(weights, value, "weights", at);
    return text_equal(read_choice(of, weights, &weights_at, ranges), TEXT("full"));
}

#define ROOT(name) key_named(NULL, TEXT(name))

manifest *read_manifest(check *of, const char *data, size_t bytes)
{
    manifest *made = take(of, 1, sizeof *made);
    const json *root = read_json(of, data, bytes);
    const key itself = ROOT("the manifest");
    char *unread;
    sha256 digest;
    sha256_begin(&digest);
    sha256_add(&digest, data, bytes);
    sha256_end(&digest, made->sha256);
    be_table(of, root, &itself);
    const json *schema = json_get(root, "schema");
    if (schema == NULL || schema->kind != JSON_WHOLE || schema->whole != 1) {
        refuse(of, MTLC_MANIFEST_SCHEMA, "manifest.json: another schema than 1, which this library reads");
    }
    const key tasks_at = ROOT("tasks"), inputs_at = ROOT("inputs"), programs_at = ROOT("programs");
    const key files_at = ROOT("files"), configurations_at = ROOT("configurations"), engines_at = ROOT("engines");
    const key dimensions_at = ROOT("dimensions"), provenance_at = ROOT("provenance");
    made->task_count =
        read_table(of, need(of, root, "tasks", NULL), &tasks_at, sizeof *made->tasks, &made->tasks, read_named_task);
    made->input_count = read_list(of, need(of, root, "inputs", NULL), &inputs_at, SIZE_MAX, sizeof *made->inputs,
                                  &made->inputs, read_input);
    made->program_count = read_list(of, need(of, root, "programs", NULL), &programs_at, SIZE_MAX,
                                    sizeof *made->programs, &made->programs, read_program);
    made->file_count =
        read_table(of, need(of, root, "files", NULL), &files_at, sizeof *made->files, &made->files, read_named_file);
    const json *how = allow(root, "preprocessing"), *device = allow(root, "device"), *widths = allow(root, "widths");
    const json *quantization = allow(root, "quantization"), *ir = allow(root, "openvino");
    if (how != NULL) {
        const key here = ROOT("preprocessing");
        made->preprocessing = read_preprocessing(of, how, &here);
    }
    made->configuration_count =
        read_list(of, need(of, root, "configurations", NULL), &configurations_at, SIZE_MAX,
                  sizeof *made->configurations, &made->configurations, read_configuration);
    if (device != NULL) {
        const key here = ROOT("device");
        read_name(of, device, &here);
    }
    be_any_table(of, need(of, root, "provenance", NULL), &provenance_at);
    if (widths != NULL) {
        const key here = ROOT("widths");
        made->widths = read_widths(of, widths, &here);
    }
    read_table(of, allow(root, "dimensions"), &dimensions_at, 1, &unread, read_sizes);
    made->engine_count =
        read_table(of, allow(root, "engines"), &engines_at, sizeof *made->engines, &made->engines, read_engine);
    if (quantization != NULL) {
        const key here = ROOT("quantization");
        made->full_range_int8 = read_quantization(of, quantization, &here);
    }
    if (ir != NULL) {
        const key here = ROOT("openvino");
        made->openvino = read_openvino(of, ir, &here);
    }
    check_manifest(of, made);
    return made;
}

/* Reads the widths of a slimmable network. */
#include "manifest_sections.h"

static void read_one_width(check *of, const json *value, const key *at, void *into)
{
    *(double *)into = read_width(of, value, at);
}

static void check_rising(check *of, const double *widths, size_t count, size_t step, const key *at)
{
    bool rising = count > 0;
    for (size_t i = 1; i < count; i++) {
        rising = rising && *(const double *)((const char *)widths + (i - 1) * step) <
                               *(const double *)((const char *)widths + i * step);
    }
    if (!rising) {
        refuse_key(of, MTLC_KEY_VALUE, at, "must be one or more widths, from narrow to wide, each once");
    }
}

static void read_decoder(check *of, const json *value, const key *at, void *into)
{
    decoder *made = into;
    be_table(of, value, at);
    READ(made->width, read_width, value, "width", at);
    READ(made->programs, read_names, value, "programs", at);
    READ(made->metric, read_finite, value, "metric", at);
}

static void read_decoders(check *of, const json *value, const key *at, void *into)
{
    decoders *made = into;
    made->task = at->name;
    made->count = read_list(of, value, at, MAX_DECODERS, sizeof *made->at, &made->at, read_decoder);
    check_rising(of, made->count ? &made->at->width : NULL, made->count, sizeof *made->at, at);
}

static void read_encoder(check *of, const json *value, const key *at, void *into)
{
    encoder *made = into;
    be_table(of, value, at);
    READ(made->name, read_name, value, "name", at);
    NEED(widths, value, "widths", at);
    made->width_count =
        read_list(of, widths, &widths_at, SIZE_MAX, sizeof *made->widths, &made->widths, read_one_width);
    READ(made->programs, read_names, value, "programs", at);
    NEED(decoders, value, "decoders", at);
    made->decoder_count =
        read_table(of, decoders, &decoders_at, sizeof *made->decoders, &made->decoders, read_decoders);
}

typedef struct truth {
    text name;
    bool value;
} truth;

static void read_named_truth(check *of, const json *value, const key *at, void *into)
{
    *(truth *)into = (truth){at->name, read_truth(of, value, at)};
}

widths *read_widths(check *of, const json *value, const key *at)
{
    widths *made = take(of, 1, sizeof *made);
    double *trained;
    truth *better;
    be_table(of, value, at);
    NEED(set, value, "widths", at);
    const size_t count = read_list(of, set, &set_at, SIZE_MAX, sizeof *trained, &trained, read_one_width);
    check_rising(of, trained, count, sizeof *trained, &set_at);
    READ(made->stages, read_names, value, "stages", at);
    READ(made->reference, read_numbers, value, "reference", at);
    NEED(higher, value, "higher_is_better", at);
    made->better_count = read_table(of, higher, &higher_at, sizeof *better, &better, read_named_truth);
    made->better_names = take(of, made->better_count, sizeof *made->better_names);
    made->better = take(of, made->better_count, sizeof *made->better);
    for (size_t i = 0; i < made->better_count; i++) {
        made->better_names[i] = better[i].name;
        made->better[i] = better[i].value;
    }
    NEED(encoders, value, "encoders", at);
    made->encoder_count =
        read_list(of, encoders, &encoders_at, MAX_ENCODERS, sizeof *made->encoders, &made->encoders, read_encoder);
    return made;
}

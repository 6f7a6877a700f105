/* Makes configurations: by name, or of an encoder and decoders that were chosen. */
#include "session.h"

#include <stdlib.h>
#include <string.h>

static int64_t total_macs(const manifest *in, const size_t *programs, size_t count, const uint64_t *asked)
{
    int64_t found = 0;
    for (size_t i = 0; i < count; i++) {
        const program *one = in->programs + programs[i];
        if (!shares_task(one->task_bits, asked, in->mask_words)) {
            continue;
        }
        if (one->macs < 0) {
            return -1;
        }
        found = one->macs > INT64_MAX - found ? INT64_MAX : found + one->macs;
    }
    return found;
}

mtlc_code make_configuration(mtlc_session *session, const char *name, const encoder *of, const decoder *const *decoders,
                             const size_t *programs, size_t program_count, const uint64_t *asked,
                             mtlc_configuration **made, mtlc_error *error)
{
    const manifest *in = session->bundle.manifest;
    size_t count = of == NULL ? program_count : of->programs.count;
    for (size_t i = 0; of != NULL && i < in->task_count; i++) {
        count += decoders[i]->programs.count;
    }
    mtlc_configuration *one = calloc(1, sizeof *one);
    size_t *listed = one == NULL ? NULL : arena_take(&one->memory, (count + 1) * sizeof *listed);
    const decoder **kept = one == NULL ? NULL : arena_take(&one->memory, (in->task_count + 1) * sizeof *kept);
    if (listed == NULL || kept == NULL) {
        mtlc_configuration_free(one);
        return fail(error, MTLC_MEMORY, "no memory left");
    }
    *one = (mtlc_configuration){one->memory, session, name, of, NULL, listed, count, 0};
    if (of == NULL) {
        memcpy(listed, programs, count * sizeof *listed);
    } else {
        size_t done = 0;
        memcpy(kept, decoders, in->task_count * sizeof *kept);
        one->decoders = kept;
        for (size_t i = 0; i < of->programs.count; i++) {
            listed[done++] = (size_t)names_find(&in->program_names, of->programs.at[i]);
        }
        for (size_t i = 0; i < in->task_count; i++) {
            for (size_t j = 0; j < decoders[i]->programs.count; j++) {
                listed[done++] = (size_t)names_find(&in->program_names, decoders[i]->programs.at[j]);
            }
        }
    }
    one->macs = total_macs(in, listed, count, asked);
    *made = one;
    return MTLC_OK;
}

static const encoder *find_encoder(const widths *in, text name)
{
    for (size_t i = 0; i < in->encoder_count; i++) {
        if (text_equal(in->encoders[i].name, name)) {
            return in->encoders + i;
        }
    }
    return NULL;
}

static const decoder *find_decoder(const decoders *row, double width)
{
    for (size_t i = 0; i < row->count; i++) {
        if (row->at[i].width == width) {
            return row->at + i;
        }
    }
    return NULL;
}

/* Every program of a bundle without widths, the listed ones of one with, or an encoder with its decoders. */
static mtlc_code make_named(mtlc_session *session, const configuration *of, arena *scratch, mtlc_configuration **made,
                            mtlc_error *error)
{
    const manifest *in = session->bundle.manifest;
    const bool listed = in->widths != NULL;
    const size_t count = listed ? of->programs.count : in->program_count;
    uint64_t *asked = arena_take(scratch, in->mask_words * sizeof *asked);
    size_t *programs = arena_take(scratch, (count + 1) * sizeof *programs);
    const decoder **decoders = arena_take(scratch, in->task_count * sizeof *decoders);
    if (asked == NULL || programs == NULL || decoders == NULL) {
        return fail(error, MTLC_MEMORY, "no memory left");
    }
    read_tasks(session, NULL, 0, asked, NULL);
    if (!of->has_encoder) {
        for (size_t i = 0; i < count; i++) {
            programs[i] = listed ? (size_t)names_find(&in->program_names, of->programs.at[i]) : i;
        }
        return make_configuration(session, of->name.data, NULL, NULL, programs, count, asked, made, error);
    }
    const encoder *chosen = find_encoder(in->widths, of->encoder);
    for (size_t i = 0; i < of->decoders.count; i++) {
        const long task = names_find(&in->task_names, of->decoders.names[i]);
        decoders[task] = find_decoder(chosen->by_task[task], of->decoders.at[i]);
    }
    return make_configuration(session, of->name.data, chosen, decoders, NULL, 0, asked, made, error);
}

mtlc_code mtlc_configuration_named(mtlc_session *session, const char *name, mtlc_configuration **configuration,
                                   mtlc_error *error)
{
    if (session == NULL || name == NULL || configuration == NULL) {
        return fail(error, MTLC_ARGUMENT, "the session, the name or the place for the configuration is NULL");
    }
    *configuration = NULL;
    for (size_t i = 0; i < session->named_count; i++) {
        if (text_equal(session->named[i]->name, text_of(name))) {
            arena scratch = {0};
            const mtlc_code code = make_named(session, session->named[i], &scratch, configuration, error);
            arena_free(&scratch);
            return code;
        }
    }
    return fail(error, MTLC_CONFIGURATION, "%s: no configuration %s", session->bundle.path.data, shown(text_of(name)));
}

const char *mtlc_configuration_name(const mtlc_configuration *configuration)
{
    return configuration->name;
}

const char *mtlc_configuration_encoder(const mtlc_configuration *configuration)
{
    return configuration->encoder == NULL ? NULL : configuration->encoder->name.data;
}

double mtlc_configuration_decoder(const mtlc_configuration *configuration, const char *task)
{
    const long place = names_find(&configuration->session->bundle.manifest->task_names, text_of(task));
    return place == NO_NAME || configuration->decoders == NULL ? 0 : configuration->decoders[place]->width;
}

int64_t mtlc_configuration_macs(const mtlc_configuration *configuration)
{
    return configuration->macs;
}

void mtlc_configuration_free(mtlc_configuration *configuration)
{
    if (configuration != NULL) {
        arena_free(&configuration->memory);
        free(configuration);
    }
}

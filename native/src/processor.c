/* Tells whether this processor computes INT8 weights of the full range wrongly. */
#include "processor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool processor_saturates(void)
{
#if defined(__x86_64__) || defined(__i386__)
    FILE *told = fopen("/proc/cpuinfo", "re");
    char *line = NULL;
    size_t room = 0;
    bool known = false, has = false;
    while (told != NULL && !known && getline(&line, &room, told) > 0) {
        if (strncmp(line, "flags", 5) == 0) {
            char *save = NULL;
            known = strchr(line, ':') != NULL;
            for (char *word = strtok_r(line, " \t\n", &save); word != NULL; word = strtok_r(NULL, " \t\n", &save)) {
                has = has || strcmp(word, "avx512_vnni") == 0 || strcmp(word, "avx_vnni") == 0;
            }
        }
    }
    free(line);
    if (told != NULL) {
        fclose(told);
    }
    return known && !has;
#else
    return false;
#endif
}

#include <stdlib.h>
#include <string.h>

#include "internal.h"

struct block {
  block *next;
};

void *take(memory *from, size_t bytes) {
  void *room = NULL;
  if (bytes > SIZE_MAX - 2 * ALIGNED) return NULL;
  /* whole cache lines: vectors may read to the end of the last one, never past it */
  size_t all = ALIGNED + (bytes + ALIGNED - 1) / ALIGNED * ALIGNED;
  if (posix_memalign(&room, ALIGNED, all)) return NULL;
  memset(room, 0, all);
  block *made = room;
  made->next = from->first;
  from->first = made;
  return (char *)room + ALIGNED;
}

void *take_many(memory *from, size_t count, size_t bytes) {
  return bytes && count > SIZE_MAX / bytes ? NULL : take(from, count * bytes);
}

char *joined(memory *from, const char *folder, const char *name) {
  size_t first = strlen(folder), second = strlen(name);
  char *path = take(from, first + second + 2);
  if (path) {
    memcpy(path, folder, first);
    path[first] = '/';
    memcpy(path + first + 1, name, second);
  }
  return path;
}

void release(memory *all) {
  while (all->first) {
    block *next = all->first->next;
    free(all->first);
    all->first = next;
  }
}

/* The workers of a session, and what generated code calls of TVM's runtime: parallel loops, room for temporaries, errors.
 *
 * Workers wait for the next loop by looking, for about as long as a small layer takes, and then asleep. Task t is always
 * worker t's, so that after the first run of a network every worker has the room that its tasks ask for. */
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define LOOKS 20000 /* some 50 to 500 us */
#define ROOMS 16    /* temporaries of one worker at a time */

typedef struct {
  void *data;
  size_t bytes;
  bool busy;
} temporary;

typedef struct {
  team *of;
  int id;
  temporary rooms[ROOMS];
  pthread_t thread;
} worker;

typedef struct {
  void *sync;
  int32_t tasks;
} group; /* TVMParallelGroupEnv */

struct team {
  int count, running; /* threads that were started */
  worker *workers;
  task job;
  void *data;
  group shared;
  int tasks;
  atomic_uint round; /* of loops; a change is the call to work */
  atomic_int left, failures, asleep, arrived, gone;
  atomic_bool ends;
  pthread_mutex_t lock;
  pthread_cond_t call;
  char error[512];
};

static _Thread_local worker *current; /* who runs generated code in this thread */
static _Thread_local bool inside;     /* a parallel loop */

static void pause_(void) {
#if defined(__x86_64__)
  __asm__ volatile("pause");
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static void work(worker *w) {
  team *t = w->of;
  current = w;
  inside = true;
  for (int id = w->id; id < t->tasks; id += t->count)
    if (t->job(id, &t->shared, t->data)) atomic_fetch_add(&t->failures, 1);
  inside = false;
}

static void *serve(void *given) {
  worker *w = given;
  team *t = w->of;
  unsigned seen = 0;
  for (;;) {
    for (int i = 0; i < LOOKS && atomic_load_explicit(&t->round, memory_order_acquire) == seen; i++) pause_();
    if (atomic_load(&t->round) == seen) {
      pthread_mutex_lock(&t->lock);
      atomic_fetch_add(&t->asleep, 1);
      while (atomic_load(&t->round) == seen) pthread_cond_wait(&t->call, &t->lock);
      atomic_fetch_sub(&t->asleep, 1);
      pthread_mutex_unlock(&t->lock);
    }
    seen = atomic_load(&t->round);
    if (atomic_load(&t->ends)) return NULL;
    work(w);
    atomic_fetch_sub_explicit(&t->left, 1, memory_order_release);
  }
}

static void call_all(team *t) {
  atomic_fetch_add(&t->round, 1);
  if (atomic_load(&t->asleep)) {
    pthread_mutex_lock(&t->lock);
    pthread_cond_broadcast(&t->call);
    pthread_mutex_unlock(&t->lock);
  }
}

kerf_status team_start(int workers, team **made) {
  team *t = calloc(1, sizeof *t);
  if (!t || !(t->workers = calloc((size_t)workers, sizeof *t->workers))) {
    free(t);
    return failed(KERF_NO_MEMORY, "no memory for %d workers", workers);
  }
  t->count = workers;
  pthread_mutex_init(&t->lock, NULL);
  pthread_cond_init(&t->call, NULL);
  for (int i = 0; i < workers; i++) t->workers[i] = (worker){.of = t, .id = i};
  for (int i = 1; i < workers; i++, t->running++)
    if (pthread_create(&t->workers[i].thread, NULL, serve, &t->workers[i])) {
      team_end(t);
      return failed(KERF_NO_MEMORY, "the system starts no %d threads", workers);
    }
  *made = t;
  return KERF_OK;
}

void team_end(team *t) {
  if (!t) return;
  atomic_store(&t->ends, true);
  call_all(t);
  for (int i = 1; i <= t->running; i++) pthread_join(t->workers[i].thread, NULL);
  for (int i = 0; i < t->count; i++)
    for (int k = 0; k < ROOMS; k++) free(t->workers[i].rooms[k].data);
  pthread_cond_destroy(&t->call);
  pthread_mutex_destroy(&t->lock);
  free(t->workers);
  free(t);
}

void team_enter(team *t) { current = &t->workers[0]; }

void team_leave(void) { current = NULL; }

const char *team_error(team *t) {
  static _Thread_local char found[sizeof t->error];
  pthread_mutex_lock(&t->lock);
  snprintf(found, sizeof found, "%s", t->error);
  t->error[0] = 0;
  pthread_mutex_unlock(&t->lock);
  return found;
}

/* ---- what generated code calls; names and arguments are TVM's (c_backend_api.h, tvm/ffi/c_api.h) */

int kerf_parallel_launch(task job, void *data, int tasks) {
  worker *caller = current;
  team *t = caller->of;
  if (tasks == 0) tasks = t->count;
  if (inside || t->count == 1) { /* a loop in a loop is this worker's alone */
    group alone = {NULL, tasks};
    for (int id = 0; id < tasks; id++)
      if (job(id, &alone, data)) return -1;
    return 0;
  }
  t->job = job;
  t->data = data;
  t->tasks = tasks;
  t->shared = (group){t, tasks};
  atomic_store(&t->failures, 0);
  atomic_store(&t->left, t->running);
  call_all(t);
  work(caller);
  for (int i = 0; atomic_load_explicit(&t->left, memory_order_acquire); i++)
    if (i < LOOKS)
      pause_();
    else
      sched_yield();
  return atomic_load(&t->failures) ? -1 : 0;
}

int kerf_parallel_barrier(int id, void *given) {
  group *env = given;
  team *t = env->sync;
  (void)id;
  if (env->tasks <= 1) return 0;
  if (!t || env->tasks > t->count) return -1; /* tasks that wait for each other would wait for ever */
  int round = atomic_load(&t->gone);
  if (atomic_fetch_add(&t->arrived, 1) + 1 == env->tasks) {
    atomic_store(&t->arrived, 0);
    atomic_fetch_add(&t->gone, 1);
  }
  while (atomic_load(&t->gone) == round) sched_yield();
  return 0;
}

void *kerf_alloc_workspace(int device, int id, uint64_t bytes, int code, int bits) {
  temporary *best = NULL;
  (void)device, (void)id, (void)code, (void)bits;
  for (int i = 0; i < ROOMS; i++) { /* the smallest that is large enough, else the largest */
    temporary *r = &current->rooms[i];
    if (r->busy) continue;
    bool fits = r->bytes >= bytes, fitted = best && best->bytes >= bytes;
    if (!best || (fits && (!fitted || r->bytes < best->bytes)) || (!fits && !fitted && r->bytes > best->bytes)) best = r;
  }
  if (!best) return NULL;
  if (best->bytes < bytes || !best->data) {
    free(best->data);
    best->bytes = 0;
    if (posix_memalign(&best->data, ALIGNED, bytes ? bytes : 1)) return best->data = NULL;
    best->bytes = bytes;
  }
  best->busy = true;
  return best->data;
}

int kerf_free_workspace(int device, int id, void *data) {
  (void)device, (void)id;
  for (int i = 0; i < ROOMS; i++)
    if (current->rooms[i].data == data && current->rooms[i].busy) {
      current->rooms[i].busy = false;
      return 0;
    }
  return -1;
}

/* The one function that libraries take by its name: they were linked without it, and find it here. */
SHOWN void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  team *t = current ? current->of : NULL;
  size_t used;
  if (!t) { /* TVM itself is in this process, and this library is one of its own */
    void *next = dlsym(RTLD_NEXT, "TVMFFIErrorSetRaisedFromCStrParts");
    void (*theirs)(const char *, const char **, int32_t) = NULL;
    memcpy(&theirs, &next, sizeof theirs);
    if (theirs) theirs(kind, parts, count);
    return;
  }
  pthread_mutex_lock(&t->lock);
  used = (size_t)snprintf(t->error, sizeof t->error, "%s: ", kind);
  for (int32_t i = 0; i < count && used < sizeof t->error; i++)
    used += (size_t)snprintf(t->error + used, sizeof t->error - used, "%s", parts[i]);
  pthread_mutex_unlock(&t->lock);
}

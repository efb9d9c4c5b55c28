/* A plugin of qemu's that says how many instructions a program executed. qemu's header comes with no package: the few
 * functions used are declared here, as version 1 of its plugin interface has them. */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>

#define SHOWN __attribute__((visibility("default")))
typedef uint64_t plugin;
struct block;

void qemu_plugin_register_vcpu_tb_trans_cb(plugin, void (*)(plugin, struct block *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct block *, int add, void *to, uint64_t amount);
size_t qemu_plugin_tb_n_insns(const struct block *);
void qemu_plugin_register_atexit_cb(plugin, void (*)(plugin, void *), void *);

SHOWN int qemu_plugin_version = 1;
static uint64_t executed; /* exact for one thread */

static void translated(plugin self, struct block *block) {
  (void)self;
  qemu_plugin_register_vcpu_tb_exec_inline(block, 0, &executed, qemu_plugin_tb_n_insns(block));
}

static void finished(plugin self, void *data) {
  (void)self, (void)data;
  fprintf(stderr, "executed %" PRIu64 "\n", executed);
}

SHOWN int qemu_plugin_install(plugin self, const void *about, int count, char **words) {
  (void)about, (void)count, (void)words;
  qemu_plugin_register_vcpu_tb_trans_cb(self, translated);
  qemu_plugin_register_atexit_cb(self, finished, NULL);
  return 0;
}

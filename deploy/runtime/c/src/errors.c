#include <stdarg.h>
#include <stdio.h>

#include "internal.h"

static _Thread_local char message[1024];

const char *kerf_message(void) { return message; }

void said(const char *text) { snprintf(message, sizeof message, "%s", text); }

kerf_status failed(kerf_status status, const char *format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(message, sizeof message, format, values);
  va_end(values);
  return status;
}

// Which kernel ran last in this process, for tests and reports. Names live as long as the process.
#pragma once

namespace ptq4arvg {

void set_last_kernel(const char* name);
const char* last_kernel();  // "" before the first

}  // namespace ptq4arvg

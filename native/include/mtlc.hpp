// Thin C++17 over mtlc.h: what is opened is closed, what fails throws. Ownership, threads and units are mtlc.h's.
#ifndef MTLC_HPP
#define MTLC_HPP

#include "mtlc.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace mtlc {

// Thrown with the line of the library; `code` says why.
class Error : public std::runtime_error {
public:
    explicit Error(const mtlc_error &error) : std::runtime_error(error.message), code(error.code) {}
    mtlc_code code;
};

namespace detail {

inline void check(mtlc_code code, const mtlc_error &error)
{
    if (code != MTLC_OK) {
        throw Error(error);
    }
}

struct Close {
    void operator()(mtlc_session *of) const { mtlc_session_close(of); }
    void operator()(mtlc_configuration *of) const { mtlc_configuration_free(of); }
    void operator()(mtlc_plan *of) const { mtlc_plan_free(of); }
};

inline std::vector<const char *> pointers(const std::vector<std::string> &names)
{
    std::vector<const char *> made;
    for (const auto &name : names) {
        made.push_back(name.c_str());
    }
    return made;
}

}  // namespace detail

template <typename T> constexpr mtlc_dtype dtype_of()
{
    using U = std::remove_cv_t<T>;
    if constexpr (std::is_same_v<U, float>) return MTLC_FLOAT32;
    else if constexpr (std::is_same_v<U, double>) return MTLC_FLOAT64;
    else if constexpr (std::is_same_v<U, bool>) return MTLC_BOOL;
    else if constexpr (std::is_same_v<U, std::int8_t>) return MTLC_INT8;
    else if constexpr (std::is_same_v<U, std::int16_t>) return MTLC_INT16;
    else if constexpr (std::is_same_v<U, std::int32_t>) return MTLC_INT32;
    else if constexpr (std::is_same_v<U, std::int64_t>) return MTLC_INT64;
    else if constexpr (std::is_same_v<U, std::uint8_t>) return MTLC_UINT8;
    else if constexpr (std::is_same_v<U, std::uint16_t>) return MTLC_UINT16;
    else if constexpr (std::is_same_v<U, std::uint32_t>) return MTLC_UINT32;
    else {
        static_assert(std::is_same_v<U, std::uint64_t>, "no dtype of a bundle");
        return MTLC_UINT64;
    }
}

// A result of a plan, in the plan's memory.
struct View : mtlc_view {
    std::vector<std::int64_t> sizes() const { return {shape, shape + rank}; }
    // Its numbers. Throws std::logic_error for another type than they are of.
    template <typename T> T *as() const
    {
        if (dtype != dtype_of<T>()) {
            throw std::logic_error(std::string("the tensor is ") + mtlc_dtype_name(dtype));
        }
        return static_cast<T *>(data);
    }
    std::size_t count() const { return bytes / mtlc_dtype_bytes(dtype); }
};

class Configuration {
public:
    explicit Configuration(mtlc_configuration *of) : of_(of) {}
    double decoder(const std::string &task) const { return mtlc_configuration_decoder(of_.get(), task.c_str()); }
    std::int64_t macs() const { return mtlc_configuration_macs(of_.get()); }
    const mtlc_configuration *get() const { return of_.get(); }

private:
    std::unique_ptr<mtlc_configuration, detail::Close> of_;
};

class Plan {
public:
    explicit Plan(mtlc_plan *of) : of_(of) {}

    // Binds `data`, which stays the caller's. `name` may be empty where there is one input.
    template <typename T> void bind(const std::string &name, const std::vector<std::int64_t> &shape, T *data)
    {
        std::size_t bytes = sizeof(T);
        for (const auto size : shape) {
            bytes *= static_cast<std::size_t>(size);
        }
        set(name, dtype_of<T>(), shape, data, bytes);
    }
    // Memory of the plan's own for an input.
    template <typename T> T *input(const std::string &name, const std::vector<std::int64_t> &shape)
    {
        set(name, dtype_of<T>(), shape, nullptr, 0);
        mtlc_error error;
        View view;
        detail::check(mtlc_plan_input(of_.get(), named(name), &view, &error), error);
        return view.template as<T>();
    }
    void run()
    {
        mtlc_error error;
        detail::check(mtlc_plan_run(of_.get(), &error), error);
    }
    View output(const std::string &task) const
    {
        mtlc_error error;
        View view;
        detail::check(mtlc_plan_output(of_.get(), task.c_str(), &view, &error), error);
        return view;
    }
    void bind_output(const std::string &task, void *data, std::size_t bytes)
    {
        mtlc_error error;
        detail::check(mtlc_plan_set_output(of_.get(), task.c_str(), data, bytes, &error), error);
    }
    mtlc_plan *get() const { return of_.get(); }

private:
    static const char *named(const std::string &name) { return name.empty() ? nullptr : name.c_str(); }
    void set(const std::string &name, mtlc_dtype dtype, const std::vector<std::int64_t> &shape, void *data,
             std::size_t bytes)
    {
        mtlc_error error;
        detail::check(mtlc_plan_set_input(of_.get(), named(name), dtype, shape.data(), static_cast<int>(shape.size()),
                                          data, bytes, &error),
                      error);
    }
    std::unique_ptr<mtlc_plan, detail::Close> of_;
};

// A bundle that is open. It must outlive its plans and configurations.
class Session {
public:
    explicit Session(const std::string &path) : Session(path, defaults()) {}
    Session(const std::string &path, const mtlc_options &options)
    {
        mtlc_error error;
        mtlc_session *made = nullptr;
        detail::check(mtlc_session_open(path.c_str(), &options, &made, &error), error);
        of_.reset(made);
    }
    static mtlc_options defaults()
    {
        mtlc_options options;
        mtlc_options_init(&options);
        return options;
    }
    std::vector<std::string> tasks() const
    {
        std::vector<std::string> names;
        for (std::size_t i = 0; i < mtlc_session_task_count(of_.get()); i++) {
            names.emplace_back(mtlc_session_task(of_.get(), i)->output.name);
        }
        return names;
    }
    Configuration named(const std::string &name) const
    {
        mtlc_error error;
        mtlc_configuration *made = nullptr;
        detail::check(mtlc_configuration_named(of_.get(), name.c_str(), &made, &error), error);
        return Configuration(made);
    }
    Configuration within(const std::string &budget, const std::vector<std::pair<std::string, double>> &prefer = {},
                         const std::vector<std::string> &tasks = {}) const
    {
        mtlc_error error;
        mtlc_configuration *made = nullptr;
        std::vector<mtlc_preference> preferences;
        for (const auto &one : prefer) {
            preferences.push_back({one.first.c_str(), one.second});
        }
        const auto names = detail::pointers(tasks);
        detail::check(mtlc_configuration_within(of_.get(), budget.c_str(), preferences.data(), preferences.size(),
                                                names.data(), names.size(), &made, &error),
                      error);
        return Configuration(made);
    }
    // Of no tasks: all.
    Plan plan(const std::vector<std::string> &tasks = {}, const Configuration *configuration = nullptr) const
    {
        mtlc_error error;
        mtlc_plan *made = nullptr;
        const auto names = detail::pointers(tasks);
        detail::check(mtlc_plan_new(of_.get(), configuration ? configuration->get() : nullptr, names.data(),
                                    names.size(), &made, &error),
                      error);
        return Plan(made);
    }
    mtlc_session *get() const { return of_.get(); }

private:
    std::unique_ptr<mtlc_session, detail::Close> of_;
};

}  // namespace mtlc

#endif

#include "text.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "constant.h"
#include "lexer.h"

namespace ptxsim {
namespace {

// What a register range or an array may have; more is taken for a slip, not for a program.
constexpr uint64_t kMaxRegisters = uint64_t{1} << 22;
constexpr uint64_t kMaxBytes = uint64_t{1} << 40;

std::string quoted(std::string_view text) { return "'" + std::string(text) + "'"; }

// The types that declarations have; instructions have more of them.
Type declared_type(const Token& token) {
  const std::string_view name = token.text.substr(1);
  if (name == "pred") return {'p', 1};
  if (name == "f16") return {'h', 16};
  if (name == "f16x2") return {'h', 32};
  if (name == "bf16") return {'B', 16};
  if (name == "bf16x2") return {'B', 32};
  int bits = 0;
  const char* end = name.data() + name.size();
  const bool is_number = std::from_chars(name.data() + 1, end, bits).ptr == end;
  const bool wide = bits == 32 || bits == 64;
  if (is_number && wide && name[0] == 'f') return {'f', static_cast<uint8_t>(bits)};
  const bool known = wide || bits == 8 || bits == 16 || (bits == 128 && name[0] == 'b');
  if (is_number && known && std::string_view("bus").find(name[0]) != std::string_view::npos)
    return {name[0], static_cast<uint8_t>(bits)};
  fail_at(token.line, quoted(token.text) + " is not a type that a declaration can have");
}

bool space_of(std::string_view text, Space& space) {
  if (text == ".param")
    space = Space::kParam;
  else if (text == ".const")
    space = Space::kConst;
  else if (text == ".global")
    space = Space::kGlobal;
  else if (text == ".shared")
    space = Space::kShared;
  else if (text == ".local")
    space = Space::kLocal;
  else
    return false;
  return true;
}

struct Symbol {
  enum class Kind : uint8_t { kRegister, kVariable, kFunction };
  Kind kind;
  int32_t index;
};

// A label may be used before it is declared, so its uses wait for the end of the scope.
struct Use {
  size_t instruction, operand;
};

struct Scope {
  std::unordered_map<std::string, Symbol> names;
  std::unordered_map<std::string, int32_t> labels;
  std::vector<Use> uses;
};

// What `.shared .align 16 .b8` says about all the names that follow it.
struct Declaration {
  Space space = Space::kGeneric;
  uint32_t align = 0;  // 0: that of the type
  Type type;
  uint32_t vector = 1;
};

class Parser {
 public:
  explicit Parser(const std::vector<Token>& tokens) : at_(tokens), scopes_(1) {}

  Module run() {
    while (!at_.is(Token::Kind::kEnd)) module_statement();
    return std::move(module_);
  }

 private:
  // ---- module and functions

  void module_statement() {
    if (at_.accept(".version")) {
      module_.version = at_.take(Token::Kind::kNumber, "a version").text;
      return;
    }
    if (at_.accept(".target")) {
      module_.target = word("a target");
      while (at_.accept(",")) word("an option of the target");
      return;
    }
    if (at_.accept(".address_size")) {
      const Token& token = at_.here();
      if (integer() != 64)
        fail_at(token.line, "addresses of " + quoted(token.text) + " bits are not supported");
      return;
    }
    if (skipped_statement()) return;
    bool external = false;
    for (;;) {
      if (at_.accept(".extern"))
        external = true;
      else if (!at_.accept(".visible") && !at_.accept(".weak") && !at_.accept(".common"))
        break;
    }
    if (at_.accept(".entry")) return function(true);
    if (at_.accept(".func")) return function(false);
    Space space;
    if (!space_of(at_.here().text, space)) at_.fail_here("a directive of a module");
    variables(external);
  }

  // What says nothing about execution, or only where the source is.
  bool skipped_statement() {
    if (at_.accept(".file")) {
      const auto number = static_cast<int32_t>(integer());
      const std::string_view name = at_.take(Token::Kind::kString, "a file name").text;
      module_.files[number] = name.substr(1, name.size() - 2);
      while (at_.accept(",")) integer();  // time and size
    } else if (at_.accept(".loc")) {
      source_file_ = static_cast<int32_t>(integer());
      source_line_ = static_cast<uint32_t>(integer());
      integer();  // column
      while (at_.accept(",")) {
        if (at_.accept("function_name")) {
          word("a label");
          offset(at_);
        } else {
          at_.expect("inlined_at");
          for (int i = 0; i < 3; ++i) integer();
        }
      }
    } else if (at_.accept(".section")) {
      at_.take(Token::Kind::kDot, "a section");
      skip_balanced("{", "}");
    } else if (at_.accept(".pragma")) {
      do at_.take(Token::Kind::kString, "a string");
      while (at_.accept(","));
      at_.expect(";");
    } else {
      return false;
    }
    return true;
  }

  void skip_balanced(std::string_view open, std::string_view close) {
    at_.expect(open);
    for (int depth = 1; depth > 0; at_.take()) {
      if (at_.is(Token::Kind::kEnd)) at_.fail_here(quoted(close));
      depth += at_.is(open) ? 1 : at_.is(close) ? -1 : 0;
    }
  }

  void function(bool is_entry) {
    function_ = Function();
    function_.is_entry = is_entry;
    source_file_ = -1;
    source_line_ = 0;
    scopes_.emplace_back();
    while (at_.accept(".attribute")) skip_balanced("(", ")");
    if (!is_entry && at_.is("(")) parameters();  // of results the caller has names of its own
    const Token& name = at_.here();
    function_.name = word("the name of a function");
    const size_t index = function_index(name);
    if (at_.is("(")) function_.params = parameters();
    performance_directives();
    function_.is_declaration = at_.accept(";");
    if (!function_.is_declaration) {
      if (!module_.functions[index].is_declaration)
        fail_at(name.line, quoted(name.text) + " has two bodies");
      block();
      end_with_return();
    }
    close_scope();
    // A declaration may also stand behind the body.
    if (module_.functions[index].is_declaration) module_.functions[index] = std::move(function_);
  }

  // Known before its body is read, because the body may call it.
  size_t function_index(const Token& name) {
    const auto next = static_cast<int32_t>(module_.functions.size());
    const auto [known, is_new] =
        scopes_[0].names.emplace(std::string(name.text), Symbol{Symbol::Kind::kFunction, next});
    if (known->second.kind != Symbol::Kind::kFunction)
      fail_at(name.line, quoted(name.text) + " is declared twice in one scope");
    if (is_new) {
      module_.functions.emplace_back();
      module_.functions.back().is_declaration = true;
    }
    return static_cast<size_t>(known->second.index);
  }

  // The end of a body returns, and a label may stand there.
  void end_with_return() {
    const auto& all = function_.instructions;
    const auto end = static_cast<int32_t>(all.size());
    const bool leaves = end > 0 && all.back().guard < 0 &&
                        (all.back().opcode == "ret" || all.back().opcode == "exit" ||
                         all.back().opcode == "bra" || all.back().opcode == "trap");
    const bool labelled = std::any_of(all.begin(), all.end(), [&](const Instruction& one) {
      return !one.operands.empty() && one.operands[0].target == end;
    });
    if (leaves && !labelled) return;
    Instruction instruction;
    instruction.opcode = "ret";
    instruction.line = at_.behind().line;
    instruction.text = at_.behind().text;
    instruction.source_file = source_file_;
    instruction.source_line = source_line_;
    function_.instructions.push_back(std::move(instruction));
  }

  std::vector<int32_t> parameters() {
    std::vector<int32_t> result;
    at_.expect("(");
    if (at_.accept(")")) return result;
    do {
      if (!at_.is(".param")) at_.fail_here("'.param'");
      result.push_back(declarator(declaration(), false));
    } while (at_.accept(","));
    at_.expect(")");
    return result;
  }

  void performance_directives() {
    for (;;) {
      if (at_.accept(".maxntid") || at_.accept(".reqntid")) {
        extents(function_.maxntid);
      } else if (at_.accept(".reqnctapercluster")) {
        extents(function_.reqcluster);
      } else if (at_.accept(".minnctapersm") || at_.accept(".maxnctapersm") ||
                 at_.accept(".maxnreg") || at_.accept(".maxclusterrank") ||
                 at_.accept(".abi_preserve") || at_.accept(".abi_preserve_control")) {
        integer();
      } else if (!at_.accept(".explicitcluster") && !at_.accept(".noreturn") &&
                 !at_.accept(".blocksareclusters") && !(at_.is(".pragma") && skipped_statement())) {
        return;
      }
    }
  }

  void extents(uint32_t (&result)[3]) {
    std::fill(result, result + 3, 1u);
    int count = 0;
    do {
      if (count == 3) at_.fail_here("at most three extents");
      result[count++] = static_cast<uint32_t>(integer());
    } while (at_.accept(","));
  }

  // ---- scopes

  void declare(const Token& at, const std::string& name, Symbol symbol) {
    if (!scopes_.back().names.emplace(name, symbol).second)
      fail_at(at.line, quoted(name) + " is declared twice in one scope");
  }

  const Symbol* find(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      const auto found = scope->names.find(name);
      if (found != scope->names.end()) return &found->second;
    }
    return nullptr;
  }

  // Labels that this scope does not have are left to the scope around it, but not beyond a
  // function.
  void close_scope() {
    Scope scope = std::move(scopes_.back());
    scopes_.pop_back();
    for (const Use& use : scope.uses) {
      Instruction& instruction = function_.instructions[use.instruction];
      Operand& operand = instruction.operands[use.operand];
      const auto label = scope.labels.find(operand.name);
      if (label != scope.labels.end())
        operand.target = label->second;
      else if (scopes_.size() > 1)
        scopes_.back().uses.push_back(use);
      else
        fail_at(instruction.line,
                quoted(operand.name) + " is not declared in " + quoted(instruction.text));
    }
  }

  // ---- statements of a body

  void block() {
    at_.expect("{");
    scopes_.emplace_back();
    while (!at_.accept("}")) statement();
    close_scope();
  }

  void statement() {
    Space space;
    if (at_.is("{")) {
      block();
    } else if (at_.is(Token::Kind::kWord) && at_.ahead().text == ":") {
      const Token& name = at_.take();
      at_.take();
      const auto here = static_cast<int32_t>(function_.instructions.size());
      if (!scopes_.back().labels.emplace(name.text, here).second)
        fail_at(name.line, quoted(name.text) + " is declared twice in one scope");
      static constexpr std::string_view kTables[] = {".branchtargets", ".calltargets",
                                                     ".callprototype"};
      for (std::string_view table : kTables)
        if (at_.is(table)) fail_at(at_.here().line, quoted(table) + " is not supported");
    } else if (at_.accept(".reg")) {
      registers();
    } else if (space_of(at_.here().text, space)) {
      variables(false);
    } else if (!skipped_statement()) {
      instruction();
    }
  }

  void registers() {
    const Type type = declared_type(at_.take(Token::Kind::kDot, "a type"));
    do {
      const Token& token = at_.here();
      const std::string name = word("the name of a register");
      if (!at_.accept("<")) {
        add_register(token, name, type);
        continue;
      }
      const uint64_t count = term(at_).bits;  // in an expression `>` would compare
      at_.expect(">");
      if (count > kMaxRegisters)
        fail_at(token.line, quoted(name) + " is a range of too many registers");
      for (uint64_t i = 0; i < count; ++i) add_register(token, name + std::to_string(i), type);
    } while (at_.accept(","));
    at_.expect(";");
  }

  void add_register(const Token& at, const std::string& name, Type type) {
    declare(at, name, {Symbol::Kind::kRegister, static_cast<int32_t>(function_.registers.size())});
    function_.registers.push_back({name, type});
  }

  // ---- variables

  void variables(bool external) {
    const Declaration declared = declaration();
    do declarator(declared, external);
    while (at_.accept(","));
    at_.expect(";");
  }

  Declaration declaration() {
    Declaration result;
    space_of(at_.take().text, result.space);
    bool pointer = false;
    while (at_.is(Token::Kind::kDot)) {
      Space pointed;
      if (at_.accept(".ptr")) {
        pointer = true;  // .space and .align behind it are those of what the parameter points at
      } else if (at_.accept(".align")) {
        const uint64_t align = integer();
        if (align == 0 || (align & (align - 1)) != 0 || align > kMaxRegisters)
          fail_at(at_.behind().line,
                  "the alignment " + quoted(at_.behind().text) + " is not a power of two");
        if (!pointer) result.align = static_cast<uint32_t>(align);
      } else if (at_.accept(".attribute")) {
        skip_balanced("(", ")");
      } else if (at_.is(".v2") || at_.is(".v4") || at_.is(".v8")) {
        result.vector = static_cast<uint32_t>(at_.take().text[2] - '0');
      } else if (pointer && space_of(at_.here().text, pointed)) {
        at_.take();
      } else {
        const Token& type = at_.take();
        if (result.type.kind != 0) fail_at(type.line, quoted(type.text) + " is a second type");
        result.type = declared_type(type);
        if (result.type.kind == 'p') fail_at(type.line, "a variable cannot have the type '.pred'");
      }
    }
    if (result.type.kind == 0) at_.fail_here("a type");
    return result;
  }

  int32_t declarator(const Declaration& declared, bool external) {
    const uint32_t size = declared.type.bits / 8u;
    const Token& name = at_.here();
    Variable variable;
    variable.name = word("the name of a variable");
    variable.space = declared.space;
    variable.align = declared.align != 0 ? declared.align : size * declared.vector;
    variable.external = external;
    uint64_t elements = declared.vector;
    bool open = false;
    while (at_.accept("[")) {
      if (at_.is("]")) {
        open = true;
      } else {
        const uint64_t extent = integer();
        if (extent > kMaxBytes / size / std::max<uint64_t>(elements, 1))
          fail_at(name.line, quoted(name.text) + " is too large");
        elements *= extent;
      }
      at_.expect("]");
    }
    if (at_.accept("=")) initialise(variable.init, declared.type);
    variable.bytes = !open ? elements * size : variable.init.size();
    if (variable.init.size() > variable.bytes)
      fail_at(name.line, quoted(name.text) + " has more initial values than elements");
    if (!variable.init.empty()) variable.init.resize(variable.bytes);

    // The definition of an `.extern` variable takes its place.
    const auto known = scopes_.back().names.find(variable.name);
    if (known != scopes_.back().names.end() && known->second.kind == Symbol::Kind::kVariable &&
        module_.variables[known->second.index].external) {
      module_.variables[known->second.index] = std::move(variable);
      return known->second.index;
    }
    const auto index = static_cast<int32_t>(module_.variables.size());
    declare(name, variable.name, {Symbol::Kind::kVariable, index});
    module_.variables.push_back(std::move(variable));
    return index;
  }

  void initialise(std::vector<uint8_t>& bytes, Type type) {
    if (!at_.accept("{")) return append(bytes, type);
    do append(bytes, type);
    while (at_.accept(","));
    at_.expect("}");
  }

  void append(std::vector<uint8_t>& bytes, Type type) {
    const Token& token = at_.here();
    if (at_.is("{"))
      fail_at(token.line, "got '{' in an initialiser, but nested ones are not supported");
    if (token.kind == Token::Kind::kWord && token.text != "WARP_SZ")
      fail_at(token.line,
              "addresses such as " + quoted(token.text) + " in initialisers are not supported");
    Constant value = constant(at_);
    if (type.kind == 'f' && value.float_bits != type.bits) convert(value, type.bits);
    for (int i = 0; i < type.bits / 8; ++i)
      bytes.push_back(i < 8 ? static_cast<uint8_t>(value.bits >> (8 * i)) : 0);
  }

  static void convert(Constant& value, uint8_t bits) {
    double number = value.is_unsigned ? static_cast<double>(value.bits)
                                      : static_cast<double>(static_cast<int64_t>(value.bits));
    float narrow;
    if (value.float_bits == 64) {
      std::memcpy(&number, &value.bits, sizeof number);
    } else if (value.float_bits == 32) {
      std::memcpy(&narrow, &value.bits, sizeof narrow);
      number = narrow;
    }
    narrow = static_cast<float>(number);
    value = {0, false, bits};
    if (bits == 32)
      std::memcpy(&value.bits, &narrow, sizeof narrow);
    else
      std::memcpy(&value.bits, &number, sizeof number);
  }

  // ---- instructions

  void instruction() {
    const Token& first = at_.here();
    Instruction instruction;
    instruction.line = first.line;
    instruction.source_file = source_file_;
    instruction.source_line = source_line_;
    if (at_.accept("@")) {
      instruction.guard_negated = at_.accept("!");
      instruction.guard = register_index();
    }
    instruction.opcode = word("an instruction");
    while (at_.is(Token::Kind::kDot)) instruction.modifiers.emplace_back(at_.take().text.substr(1));
    const bool call = instruction.opcode == "call", branch = instruction.opcode == "bra";
    if (!at_.is(";")) {
      do {
        if (call)
          instruction.operands.push_back(call_operand());
        else if (branch)
          instruction.operands.push_back(label());
        else
          instruction.operands.push_back(operand());
      } while (at_.accept(","));
    }
    if (!at_.is(";")) at_.fail_here("',' or ';'");
    instruction.text = on_one_line(first, at_.take());
    for (size_t i = 0; i < instruction.operands.size(); ++i)
      if (instruction.operands[i].kind == Operand::Kind::kLabel)
        scopes_.back().uses.push_back({function_.instructions.size(), i});
    function_.instructions.push_back(std::move(instruction));
  }

  Operand label() {
    Operand result;
    result.kind = Operand::Kind::kLabel;
    result.name = word("a label");
    return result;
  }

  Operand call_operand() {
    if (at_.is("(")) return group(Operand::Kind::kList, "(", ")");
    const Token& token = at_.here();
    Operand result = operand();
    if (result.kind == Operand::Kind::kLabel)
      fail_at(token.line, quoted(token.text) + " is called but not declared");
    return result;
  }

  Operand group(Operand::Kind kind, std::string_view open, std::string_view close) {
    Operand result;
    result.kind = kind;
    at_.expect(open);
    if (at_.accept(close)) return result;
    do {
      const Token& token = at_.here();
      Operand item = operand();
      const auto is = item.kind;
      if (is == Operand::Kind::kLabel) fail_at(token.line, quoted(token.text) + " is not declared");
      if (is == Operand::Kind::kVector || is == Operand::Kind::kAddress ||
          is == Operand::Kind::kFunction)
        fail_at(token.line, quoted(token.text) + " cannot stand between " + quoted(open) + " and " +
                                quoted(close));
      result.items.push_back(std::move(item));
    } while (at_.accept(","));
    at_.expect(close);
    return result;
  }

  Operand operand() {
    if (at_.is("{")) return group(Operand::Kind::kVector, "{", "}");
    if (at_.is("[")) return address();
    if (at_.is("!") && at_.ahead().kind == Token::Kind::kWord) {
      at_.take();
      Operand result;
      result.kind = Operand::Kind::kRegister;
      result.negated = true;
      result.reg = register_index();
      return result;
    }
    if (at_.is(Token::Kind::kWord) && !at_.is("WARP_SZ")) return named();
    if (at_.is(",") || at_.is(";")) at_.fail_here("an operand");
    const Constant value = constant(at_);
    Operand result;
    result.kind = Operand::Kind::kImmediate;
    result.value = value.bits;
    result.is_float = value.float_bits != 0;
    result.float_bits = value.float_bits;
    return result;
  }

  Operand named() {
    Operand result;
    std::string name = word("a name");
    const Symbol* symbol = find(name);
    if (name == "_") {
      result.kind = Operand::Kind::kNone;
    } else if (symbol == nullptr) {
      result.kind = name[0] == '%' ? Operand::Kind::kSpecial : Operand::Kind::kLabel;
      if (name[0] == '%')
        while (at_.is(Token::Kind::kDot)) name += at_.take().text;
      result.name = std::move(name);
      return result;
    } else if (symbol->kind == Symbol::Kind::kRegister) {
      result.kind = Operand::Kind::kRegister;
      result.reg = symbol->index;
    } else if (symbol->kind == Symbol::Kind::kVariable) {
      result.kind = Operand::Kind::kVariable;
      result.variable = symbol->index;
      result.value = offset(at_);
      return result;
    } else {
      result.kind = Operand::Kind::kFunction;
      result.name = std::move(name);
      return result;
    }
    if (at_.accept("|")) result.pair = at_.accept("_") ? -2 : register_index();
    return result;
  }

  Operand address() {
    Operand result;
    result.kind = Operand::Kind::kAddress;
    at_.expect("[");
    if (at_.is(Token::Kind::kWord) && !at_.is("WARP_SZ")) {
      const Token& name = at_.take();
      const Symbol* symbol = find(std::string(name.text));
      if (symbol == nullptr) fail_at(name.line, quoted(name.text) + " is not declared");
      if (symbol->kind == Symbol::Kind::kFunction)
        fail_at(name.line, quoted(name.text) + " is a function, not an address");
      (symbol->kind == Symbol::Kind::kRegister ? result.reg : result.variable) = symbol->index;
      result.value = offset(at_);
    } else {
      result.value = integer();
    }
    if (at_.accept(",")) result.items = group(Operand::Kind::kVector, "{", "}").items;
    at_.expect("]");
    return result;
  }

  // ---- words

  int32_t register_index() {
    const Token& token = at_.here();
    const Symbol* symbol = find(word("a register"));
    if (symbol == nullptr || symbol->kind != Symbol::Kind::kRegister)
      fail_at(token.line, quoted(token.text) + " is not a register that is declared here");
    return symbol->index;
  }

  std::string word(const char* expected) {
    return std::string(at_.take(Token::Kind::kWord, expected).text);
  }

  uint64_t integer() {
    const Token& token = at_.here();
    const Constant value = constant(at_);
    if (value.float_bits != 0) fail_at(token.line, quoted(token.text) + " is not an integer");
    return value.bits;
  }

  Cursor at_;
  Module module_;
  Function function_;          // the one being read
  std::vector<Scope> scopes_;  // of the module, the function's parameters, and blocks
  int32_t source_file_ = -1;
  uint32_t source_line_ = 0;
};

}  // namespace

Module parse(const std::string& text) {
  const std::vector<Token> tokens = tokenize(text);
  return Parser(tokens).run();
}

}  // namespace ptxsim

// Texts of the form and of the actions, in both languages.
import { addTexts } from "./texts.js";

addTexts({
  en: {
    view_new: "New run", groups_title: "Groups", settings_title: "Settings", more_title: "Further overrides", plan_title: "Plan",
    default_option: "default: {name}", none_option: "none", by_experiment: "as the experiment sets it",
    settings_hint: "Type a value; grey is what the run has without it. Several values, such as 4,8,16, make a sweep.",
    find_any: "Find any setting", find_any_hint: "name or meaning, such as warmup", add_setting: "add {name}", no_setting: "No setting is found.", remove_setting: "leave out {name}",
    more_hint: "As on the command line: lora=dora,default  +data.columns.instruction=question  -m",
    planning: "Planning …", fits: "fits", does_not_fit: "does not fit", unknown_fit: "unknown whether it fits", apply: "Apply {change}", of_limit: "{size} of {limit}",
    sweep_of: "A sweep of {jobs} jobs", sweep_unknown: "A sweep", sweep_searches: "A search, which chooses its jobs as it goes. The plan is that of a run without what is searched.",
    sweep_first: "The first {count} jobs are planned; all are checked before one starts.", refused_here: "Refused on this machine: {text}", as_printed: "As mode=plan prints it",
    start_run: "Start the run", start_sweep: "Start the sweep", starting_at: "Starting in {folder} …", clear: "Clear the form", start_anyway: "The plan says that it does not fit. Start it anyway?",
    started_title: "Started from this board", ended_with: "ended with code {code}", goes_on: "runs, process {pid}; it goes on when the board ends", open: "Open", output: "Output",
    stop: "Stop", stop_title: "It finishes its step, saves a checkpoint and ends (train.grace); it can be resumed.", stopping: "Stopping: it finishes the step and saves …", stop_now: "Stop now", stopping_now: "Ending at once …",
    stop_now_sure: "End it at once, without saving? What was saved before is kept.", resume: "Resume …", resume_start: "Resume", resume_sweep: "Resume the sweep", retry_failed: "Resume, and run failed jobs again",
    resume_hint: "Settings that may be other than before; empty: as they were. Further ones as on the command line.", copy_command: "Copy the command", no_command: "Its command was not written down.",
    part_of_sweep: "A job of a sweep is stopped and resumed with its sweep.", current: "now {value}", resuming: "Resuming …", stop_asked: "It was asked to stop.",
  },
  zh: {
    view_new: "新运行", groups_title: "配置组", settings_title: "设置", more_title: "其他覆盖项", plan_title: "资源预估",
    default_option: "默认：{name}", none_option: "无", by_experiment: "由实验决定",
    settings_hint: "输入值；灰色是不输入时的值。输入多个值（如 4,8,16）就是扫参。",
    find_any: "查找任意设置", find_any_hint: "名称或含义，如 warmup", add_setting: "添加 {name}", no_setting: "没有找到设置。", remove_setting: "去掉 {name}",
    more_hint: "与命令行写法相同：lora=dora,default  +data.columns.instruction=question  -m",
    planning: "预估中…", fits: "放得下", does_not_fit: "放不下", unknown_fit: "不知道是否放得下", apply: "应用 {change}", of_limit: "{size}，共 {limit}",
    sweep_of: "扫参，共 {jobs} 个任务", sweep_unknown: "扫参", sweep_searches: "搜索：边运行边选择任务。这里预估的是不含搜索项的一次运行。",
    sweep_first: "预估了前 {count} 个任务；开始之前会检查全部任务。", refused_here: "在本机会被拒绝：{text}", as_printed: "mode=plan 的输出",
    start_run: "开始运行", start_sweep: "开始扫参", starting_at: "正在 {folder} 中启动…", clear: "清空表单", start_anyway: "资源预估认为放不下，仍然开始吗？",
    started_title: "由本地看板启动", ended_with: "已结束，退出码 {code}", goes_on: "正在运行，进程 {pid}；本地看板结束后它会继续", open: "打开", output: "输出",
    stop: "停止", stop_title: "完成当前步、保存检查点后结束（train.grace），之后可以续训。", stopping: "正在停止：完成当前步并保存…", stop_now: "立即停止", stopping_now: "正在立即结束…",
    stop_now_sure: "不保存，立即结束吗？之前保存的内容会保留。", resume: "续训…", resume_start: "续训", resume_sweep: "续跑扫参", retry_failed: "续跑，并重跑失败的任务",
    resume_hint: "可以改动的设置；留空则与之前相同。其他设置的写法与命令行相同。", copy_command: "复制命令", no_command: "没有记录它的命令。",
    part_of_sweep: "扫参中的任务随扫参一起停止和续训。", current: "现为 {value}", resuming: "正在续训…", stop_asked: "已要求它停止。",
  },
});

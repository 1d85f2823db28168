"""Word lists for the generated passages, news and sentences.

``WORDS`` maps a slot of the passage templates to its possible values. ``PAIRS`` maps a slot of the translation
templates to the forms of each word: Chinese first, then English.
"""

SURNAMES = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶"
GIVEN = """
伟 芳 娜 敏 静 丽 强 磊 军 洋 勇 艳 杰 娟 涛 明 超 霞 平 刚 玲 桂英 建国 志强 小红 小雨 晓东 文静 海燕
雪梅 子涵 雨欣 浩然 思远 佳怡 欣怡 俊杰 一鸣 梦瑶 天宇 阳 帆 宁 琳 晨 悦 鹏 斌 辉 慧 婷 莹 倩 冰 波
"""
TITLES = "老师 医生 师傅 阿姨 叔叔 奶奶 爷爷 教授 经理 警官"
DIGITS = "零一二三四五六七八九"
CITIES = """
北京 上海 广州 深圳 杭州 南京 苏州 成都 重庆 武汉 西安 天津 青岛 大连 厦门 长沙 昆明 桂林 哈尔滨 沈阳 济南 郑州
福州 合肥 兰州 贵阳 南昌 太原 宁波 三亚 拉萨 洛阳 扬州 海口
"""

_LISTS = {
    "k": "妈妈 爸爸 奶奶 爷爷 姐姐 哥哥 弟弟 妹妹 外婆 外公 叔叔 姑姑 舅舅 表哥 同桌 邻居 老师",
    "t": """昨天 昨天上午 昨天下午 昨天晚上 上个星期 上周六 上周日 上个月 去年 前天 今天早上 今天中午 星期一
        星期三 星期五 周末 去年夏天 今年春天 寒假里 暑假里 国庆节 三月五日 六月一日 十月十日 前天晚上""",
    "ft": """明天 明天上午 明天下午 后天 下周一 下周三 下周五 周六上午 周日下午 下个月 今晚 月底 五月一日 七月十日
        九月一日 星期四 明年 元旦 春节 周五晚上""",
    "pl": """公园 超市 博物馆 图书馆 动物园 电影院 科技馆 植物园 书店 菜市场 体育馆 海边 山上 湖边 学校 医院 美术馆
        商场 游泳馆 少年宫 古镇 果园 农场 火车站 邮局 银行 咖啡馆 面包店 花店 操场 剧院 水族馆""",
    "at": """教室里 办公室里 客厅里 桌子上 书架上 床底下 冰箱里 书包里 门口 院子里 阳台上 沙发上 抽屉里 柜子里
        大树下 河边 楼下 车站旁边 桥头 窗台上 厨房里 车上 二楼 一楼大厅 三号楼 五楼会议室 学校礼堂""",
    "act": """看展览 看电影 跑步 爬山 游泳 钓鱼 拍照 散步 打篮球 踢足球 放风筝 看熊猫 摘苹果 画画 听音乐会 划船 骑车
        滑雪 看日出 看比赛 买书 喝咖啡 看花 看书 采草莓 学唱歌 打羽毛球 看冰灯 参观 野餐 露营 唱歌""",
    "it": """一把雨伞 一本书 一件毛衣 一双鞋 一个书包 一台相机 一块手表 一束花 一盒巧克力 一个西瓜 两斤苹果 一条围巾
        一顶帽子 一只风筝 三支铅笔 一辆自行车 一部手机 一副眼镜 一张地图 一个蛋糕 一把扇子 一个杯子 两张电影票
        一袋大米 一套积木 一台电脑 一个足球 一本字典 一个钱包 一串钥匙 一封信 一幅画 一盆兰花""",
    "fd": """面条 饺子 红烧肉 西红柿炒鸡蛋 烤鸭 火锅 豆腐 米饭 包子 酸菜鱼 牛肉面 馒头 炒青菜 鸡汤 粽子 月饼 汤圆
        烤鱼 蛋炒饭 糖醋排骨 小笼包 南瓜粥 绿豆汤 春卷 年糕 馄饨""",
    "fr": "苹果 香蕉 橘子 西瓜 葡萄 草莓 桃子 梨 樱桃 芒果 柚子 菠萝 石榴 枣",
    "an": "小猫 小狗 兔子 金鱼 鹦鹉 乌龟 仓鼠 山羊 母鸡 鸭子 小马 鸽子 松鼠 奶牛 刺猬",
    "nm": "团团 豆豆 毛毛 小黑 小白 花花 球球 乐乐 咪咪 旺财 点点 阿黄 圆圆 果果 雪球 糖糖",
    "col": "红色 蓝色 白色 黑色 绿色 黄色 灰色 紫色 粉色 棕色 银色 橙色",
    "sj": "数学 语文 英语 历史 地理 物理 化学 音乐 美术 体育 科学 生物",
    "jb": "医生 护士 老师 厨师 司机 工程师 律师 记者 警察 画家 会计 演员 歌手 农民 消防员 程序员 导游 摄影师",
    "hb": """画画 游泳 下棋 唱歌 跳舞 跑步 钓鱼 看书 种花 摄影 爬山 弹钢琴 拉小提琴 打篮球 踢足球 写字 做饭 集邮
        看电影 打乒乓球 骑车 剪纸""",
    "se": "春天 夏天 秋天 冬天",
    "wd": "星期一 星期二 星期三 星期四 星期五 星期六 星期日",
    "clk": """六点 七点 八点 九点 十点 十一点 七点半 八点半 九点半 一点 两点 三点 四点半 下午两点 下午三点 下午五点
        晚上六点 晚上七点 早上六点 早上七点半 上午九点 上午十点半 中午十二点 晚上八点半 三点一刻""",
    "dur": """半个小时 一个小时 两个小时 三个小时 十分钟 二十分钟 四十分钟 一天 两天 三天 一个星期 两个星期 一个月
        三个月 半年 一年 两年 三年 五年 十年 八个月 十五分钟""",
    "min": "十分钟 五分钟 八分钟 十五分钟 二十分钟 半个小时 一个小时 四十分钟 两个小时 三个小时",
    "hr": "六点 七点 八点 九点 六点半 七点半 八点半 九点半 十点 十点半",
    "td": "昨天 前天 上周六 上周日 星期一 星期二 星期三 三月五日 六月一日 十月十日 元旦",
    "in": "桌子上 书架上 床底下 冰箱上 书包里 阳台上 沙发上 抽屉里 柜子里 窗台上 厨房里 车上 教室里 客厅里",
    "kd": "小朋友 市民 学生 居民 志愿者 老人 游客 家长 读者 选手 观众 工人 运动员 老师 青年 村民 医生",
    "org": """市图书馆 市博物馆 实验小学 第一中学 育才中学 市少年宫 红星小区 东湖公园 市体育馆 阳光社区 市科技馆
        光明小学 市美术馆 人民医院 青山镇 新桥村 幸福社区 师范大学 市文化馆 城南小学 和平社区 向阳中学 外国语学校
        市动物园 西山村 工人文化宫 大学城 滨江社区 市档案馆 植物园""",
    "ev": """读书会 书法比赛 运动会 歌唱比赛 科技节 画展 摄影展 音乐会 篮球赛 讲座 故事会 义卖活动 植树活动 招聘会
        菊花展 美食节 象棋比赛 朗诵比赛 环保活动 消防演习 旧物市场 茶艺课 机器人比赛 亲子活动 足球赛 包饺子活动
        灯谜会 电影周 跳绳比赛 健康讲座 开放日 艺术节""",
    "pj": """体育馆 图书馆 公园 停车场 医院 幼儿园 小学 地铁站 大桥 科技馆 养老院 游泳馆 菜市场 音乐厅 博物馆 公交站
        足球场 书店 食堂 实验室""",
    "dis": "大火 暴雨 大雪 大风 洪水 停电 浓雾 冰雹 高温 寒潮",
    "rd": "人民路 解放路 中山路 和平街 建设路 长江路 学院路 东风街 南京路 新华街 湖滨路 文化街",
    "cr": "苹果 水稻 小麦 西瓜 橘子 茶叶 葡萄 玉米 土豆 花生 草莓 梨",
    "wx": "晴朗 阴沉 很冷 很热 多云 凉爽 暖和 不错",
    "feel": "很开心 很累 很满足 很感动 很难忘 很激动 非常高兴 有点紧张 有点害怕 特别自豪 依依不舍",
}
WORDS: dict[str, list[str]] = {slot: words.split() for slot, words in _LISTS.items()}


def numeral(number: int) -> str:
    """Write 1..9999 in Chinese numerals."""
    text, gap = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, number = divmod(number, unit)
        if digit:
            text += ("零" if gap and text else "") + DIGITS[digit] + name
        gap = digit == 0
    return text.removeprefix("一") if text.startswith("一十") else text


WORDS["p"] = [s + g for s in SURNAMES for g in GIVEN.split()]
WORDS["p"] += [s + t for s in SURNAMES for t in TITLES.split()]
WORDS["p"] += [f"小{s}" for s in SURNAMES] + [f"老{s}" for s in SURNAMES]
WORDS["sn"] = list(SURNAMES)
WORDS["ct"] = CITIES.split()
WORDS["n"] = [numeral(n) for n in (*range(3, 60), *range(60, 1000, 20))]
WORDS["big"] = [numeral(n) for n in (*range(20, 100, 10), *range(100, 3000, 100))]
WORDS["sm"] = [numeral(n) for n in range(3, 60)]
WORDS["lo"] = [numeral(n) + "元" for n in range(2, 60)]
WORDS["pr"] = [numeral(n) + "元" for n in (*range(3, 100), *range(100, 3000, 35))]

PAIRS: dict[str, list[tuple[str, ...]]] = {}


def _pairs(text: str) -> list[tuple[str, ...]]:
    """Parse entries separated by ``;``, the forms of each by ``/``."""
    return [tuple(entry.strip().split("/")) for entry in text.split(";")]


def _plural(noun: str) -> str:
    """Form the plural of a regular English noun."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("x", "ch", "sh", "s")) else "s")


# Subjects that take "are/want" and those that take "is/wants", with their "be" form.
PAIRS["sp"] = _pairs("""我/I/I am;你/you/you are;我们/we/we are;他们/they/they are;孩子们/the children/the children are;
学生们/the students/the students are;我的朋友们/my friends/my friends are;我父母/my parents/my parents are;
她们/they/they are;老师们/the teachers/the teachers are""")
PAIRS["st"] = (
    _pairs("""他/he;她/she;我妈妈/my mother;我爸爸/my father;我哥哥/my brother;我姐姐/my sister;老师/the teacher;
那个男孩/the boy;那个女孩/the girl;医生/the doctor;王先生/Mr. Wang;李小姐/Miss Li;我的朋友/my friend;她妹妹/her sister;
他弟弟/his brother;我爷爷/my grandfather;我奶奶/my grandmother;汤姆/Tom;玛丽/Mary;我儿子/my son;我女儿/my daughter""")
)
PAIRS["st"] = [(zh, en, f"{en} is") for zh, en in PAIRS["st"]]
PAIRS["s"] = PAIRS["sp"] + PAIRS["st"]
PAIRS["food"] = _pairs("""苹果/apples;面条/noodles;米饭/rice;鱼/fish;鸡蛋/eggs;面包/bread;饺子/dumplings;蛋糕/cake;
香蕉/bananas;牛肉/beef;蔬菜/vegetables;西瓜/watermelon;巧克力/chocolate;水果/fruit;汤/soup;鸡肉/chicken""")
PAIRS["drink"] = _pairs("茶/tea;咖啡/coffee;牛奶/milk;水/water;果汁/juice;啤酒/beer;热茶/hot tea;绿茶/green tea")
PAIRS["thing"] = _pairs("""书/book/本;手机/phone/部;衬衫/shirt/件;帽子/hat/顶;包/bag/个;杯子/cup/个;手表/watch/块;
钥匙/key/把;椅子/chair/把;桌子/table/张;电脑/computer/台;自行车/bike/辆;相机/camera/台;照片/photo/张;雨伞/umbrella/把;
地图/map/张;铅笔/pencil/支;球/ball/个;盒子/box/个;蛋糕/cake/个;西瓜/watermelon/个;礼物/gift/份;票/ticket/张;
外套/coat/件;花瓶/vase/个;报纸/newspaper/份;词典/dictionary/本;玩具/toy/个;瓶子/bottle/个;橘子/orange/个""")
PAIRS["thing"] = [(*forms, _plural(forms[1])) for forms in PAIRS["thing"]]
PAIRS["small"] = [forms for forms in PAIRS["thing"] if forms[1] not in ("chair", "table", "bike", "box")]
PAIRS["animal"] = (
    _pairs("""猫/cat/只;狗/dog/只;鸟/bird/只;马/horse/匹;鱼/fish/条;兔子/rabbit/只;老虎/tiger/只;熊猫/panda/只;
猴子/monkey/只;鸭子/duck/只;孩子/child/个;男孩/boy/个;女孩/girl/个""")
)
PAIRS["place"] = (
    _pairs("""学校/school;医院/hospital;公园/park;图书馆/library;银行/bank;超市/supermarket;火车站/train station;
机场/airport;博物馆/museum;动物园/zoo;餐厅/restaurant;商店/shop;邮局/post office;电影院/cinema;酒店/hotel;办公室/office;
市场/market;书店/bookstore;工厂/factory;教室/classroom;厨房/kitchen;花园/garden;咖啡馆/cafe""")
)
PAIRS["city"] = _pairs("""北京/Beijing;上海/Shanghai;广州/Guangzhou;杭州/Hangzhou;南京/Nanjing;伦敦/London;巴黎/Paris;
东京/Tokyo;纽约/New York;西安/Xi'an;成都/Chengdu;中国/China;英国/England;美国/America;日本/Japan;法国/France""")
PAIRS["job"] = (
    _pairs("""医生/a doctor;老师/a teacher;护士/a nurse;司机/a driver;学生/a student;厨师/a cook;警察/a police officer;
工程师/an engineer;歌手/a singer;农民/a farmer;律师/a lawyer;演员/an actor;作家/a writer;科学家/a scientist""")
)
PAIRS["mood"] = _pairs("""高兴/happy;累/tired;忙/busy;饿/hungry;生气/angry;难过/sad;渴/thirsty;紧张/nervous;
害怕/afraid;困/sleepy;冷/cold;安静/quiet""")
PAIRS["trait"] = _pairs("年轻/young;聪明/smart;高/tall;善良/kind;漂亮/beautiful;强壮/strong;友好/friendly;有名/famous")
PAIRS["adj"] = (
    _pairs("""新/new;旧/old;贵/expensive;便宜/cheap;大/big;小/small;漂亮/beautiful;有用/useful;重/heavy;轻/light;
干净/clean;脏/dirty;好/good;重要/important;有趣/interesting;特别/special""")
)
PAIRS["comp"] = _pairs("""高/taller;矮/shorter;快/faster;慢/slower;漂亮/more beautiful;聪明/smarter;年轻/younger;
强壮/stronger;忙/busier;安静/quieter;高兴/happier;老/older""")
PAIRS["size"] = _pairs("""大/bigger;小/smaller;贵/more expensive;便宜/cheaper;重/heavier;轻/lighter;新/newer;好/better;
旧/older;干净/cleaner;有用/more useful""")
PAIRS["wea"] = _pairs("冷/cold;热/hot;暖和/warm;凉快/cool;晴朗/sunny;多云/cloudy;潮湿/wet;干燥/dry")
PAIRS["sea"] = _pairs("春天/spring;夏天/summer;秋天/autumn;冬天/winter")
PAIRS["past"] = (
    _pairs("""昨天/yesterday;上周/last week;昨天晚上/last night;上个月/last month;去年/last year;今天早上/this morning;
上个星期天/last Sunday;两天前/two days ago;上星期六/last Saturday""")
)
PAIRS["fut"] = (
    _pairs("""明天/tomorrow;下周/next week;今晚/tonight;下个月/next month;明年/next year;明天早上/tomorrow morning;
这个周末/this weekend;下星期一/next Monday;后天/the day after tomorrow""")
)
PAIRS["freq"] = _pairs(
    "每天/every day;每天早上/every morning;每天晚上/every evening;每个周末/every weekend;每年/every year"
)
PAIRS["day"] = _pairs("""星期一/Monday;星期二/Tuesday;星期三/Wednesday;星期四/Thursday;星期五/Friday;星期六/Saturday;
星期天/Sunday""")
PAIRS["num"] = _pairs("两/two;三/three;四/four;五/five;六/six;七/seven;八/eight;九/nine;十/ten")
PAIRS["hour"] = _pairs("""一/one;两/two;三/three;四/four;五/five;六/six;七/seven;八/eight;九/nine;十/ten;
十一/eleven;十二/twelve""")
PAIRS["col"] = _pairs("红色/red;蓝色/blue;白色/white;黑色/black;绿色/green;黄色/yellow;棕色/brown;灰色/gray")
PAIRS["own"] = _pairs("我/my;你/your;他/his;她/her;我们/our;他们/their")
PAIRS["lang"] = _pairs("英语/English;汉语/Chinese;法语/French;日语/Japanese;数学/math;历史/history;音乐/music")
PAIRS["veh"] = _pairs("公交车/by bus;火车/by train;飞机/by plane;地铁/by subway;出租车/by taxi;船/by ship")
PAIRS["loc"] = (
    _pairs("""桌子上/on the table;桌子下面/under the table;盒子里/in the box;椅子上/on the chair;床上/on the bed;
包里/in the bag;床下面/under the bed;教室里/in the classroom;房间里/in the room;厨房里/in the kitchen;花园里/in the garden;
树下/under the tree;门后面/behind the door;车里/in the car;窗户旁边/by the window;公园里/in the park;书架上/on the shelf""")
)

# verb: Chinese/base/third person/-ing/past, and the class of its objects.
_VERBS = """吃/eat/eats/eating/ate:food;喝/drink/drinks/drinking/drank:drink;做/make/makes/making/made:food;
买/buy/buys/buying/bought:food;学/study/studies/studying/studied:lang;教/teach/teaches/teaching/taught:lang;
打/play/plays/playing/played:game;看/watch/watches/watching/watched:show;读/read/reads/reading/read:text;
打扫/clean/cleans/cleaning/cleaned:room;写/write/writes/writing/wrote:paper;洗/wash/washes/washing/washed:wash;
听/listen to/listens to/listening to/listened to:sound;找/look for/looks for/looking for/looked for:lost;
帮助/help/helps/helping/helped:who;参观/visit/visits/visiting/visited:sight"""
_OBJECTS = {
    "food": PAIRS["food"],
    "drink": PAIRS["drink"],
    "lang": PAIRS["lang"],
    "game": _pairs("篮球/basketball;网球/tennis;乒乓球/table tennis;排球/volleyball;羽毛球/badminton"),
    "show": _pairs("电影/a movie;电视/TV;足球比赛/a football match;新闻/the news;动画片/a cartoon"),
    "text": _pairs("书/a book;报纸/the newspaper;这本书/this book;一个故事/a story;信/a letter;杂志/a magazine"),
    "room": _pairs("房间/the room;教室/the classroom;厨房/the kitchen;房子/the house;花园/the garden"),
    "paper": _pairs("信/a letter;日记/a diary;作业/homework;一个故事/a story;一首诗/a poem"),
    "wash": _pairs("衣服/clothes;碗/the dishes;手/hands;车/the car;水果/fruit"),
    "sound": _pairs("音乐/music;收音机/the radio;老师/the teacher;新闻/the news;歌/songs"),
    "lost": _pairs("钥匙/the key;手机/the phone;猫/the cat;狗/the dog;他的书/his book;我的包/my bag"),
    "who": _pairs("老人/old people;朋友/friends;同学/classmates;妈妈/mom;邻居/the neighbors;孩子/children"),
    "sight": _pairs("博物馆/the museum;长城/the Great Wall;动物园/the zoo;朋友/friends;北京/Beijing;学校/the school"),
}


def _phrases() -> list[tuple[str, ...]]:
    """Join every verb with its objects: zh, base, third, -ing, past, zh past."""
    found = []
    for line in _VERBS.split(";"):
        forms, kind = line.strip().split(":")
        verb, *english = forms.split("/")
        for zh, en in _OBJECTS[kind]:
            found.append((verb + zh, *(f"{form} {en}" for form in english), f"{verb}了{zh}"))
    return found


PAIRS["vp"] = _phrases()

-- A store as the first version of its tables was written, by commit e8c19a7, with its journal and its own SQL only;
-- dumped by iterdump() of Python's sqlite3.
BEGIN TRANSACTION;
CREATE TABLE lpi_accounts (
    ledger TEXT NOT NULL,
    account TEXT NOT NULL,
    sent TEXT NOT NULL DEFAULT '0',
    received TEXT NOT NULL DEFAULT '0',
    level TEXT NOT NULL DEFAULT 'plain',
    keys_kept INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (ledger, account)
) WITHOUT ROWID;
INSERT INTO "lpi_accounts" VALUES('main','alice','36893488147419103230','36893488147419103242','keyed',5);
INSERT INTO "lpi_accounts" VALUES('main','bob','40','240','plain',3);
INSERT INTO "lpi_accounts" VALUES('main','carol','0','0','keyed',0);
INSERT INTO "lpi_accounts" VALUES('wallet','','4000','7000','keyed',1);
CREATE TABLE lpi_ledgers (
            ledger TEXT PRIMARY KEY,
            age REAL NOT NULL
        ) WITHOUT ROWID;
INSERT INTO "lpi_ledgers" VALUES('idle',10.0);
INSERT INTO "lpi_ledgers" VALUES('main',430.0);
CREATE TABLE lpi_schema (component TEXT PRIMARY KEY, version INTEGER NOT NULL);
INSERT INTO "lpi_schema" VALUES('values',1);
INSERT INTO "lpi_schema" VALUES('transfers',1);
CREATE TABLE lpi_transfers (
            id INTEGER PRIMARY KEY,
            ledger TEXT NOT NULL,
            account TEXT NOT NULL,
            direction TEXT NOT NULL,
            key TEXT NOT NULL,
            amount TEXT NOT NULL,
            level TEXT NOT NULL,
            state TEXT NOT NULL,
            digest BLOB NOT NULL DEFAULT x'',
            error_code TEXT,
            error_name TEXT,
            error_data BLOB,
            created REAL NOT NULL,
            changed REAL NOT NULL,
            remembered_from REAL NOT NULL,
            resend_until REAL,
            UNIQUE (ledger, account, direction, key)
        );
INSERT INTO "lpi_transfers" VALUES(1,'main','alice','in','a received','18446744073709551615','keyed','delivered',X'646967657374206F662061207265636569766564',NULL,NULL,NULL,1700000001.0,1700000002.0,10.0,NULL);
INSERT INTO "lpi_transfers" VALUES(2,'main','alice','out','a paid','18446744073709551615','keyed','acked',X'',NULL,NULL,NULL,1700000003.0,1700000004.0,40.0,1700302400.0);
INSERT INTO "lpi_transfers" VALUES(3,'main','alice','out','a refused','1','keyed','rejected',X'','F00','NotAcceptedError',X'7B226D657373616765223A226E6F227D',1700000006.0,1700000007.0,60.0,1700302400.0);
INSERT INTO "lpi_transfers" VALUES(4,'main','alice','out','a confirmed','18446744073709551615','keyed','acked',X'',NULL,NULL,NULL,1700000009.0,1700000011.0,90.0,1700302400.0);
INSERT INTO "lpi_transfers" VALUES(5,'main','alice','out','a rejected','2','keyed','rejected',X'',NULL,NULL,NULL,1700000012.0,1700000014.0,120.0,1700302400.0);
INSERT INTO "lpi_transfers" VALUES(6,'main','alice','out','a doubt','3','keyed','in_doubt',X'',NULL,NULL,NULL,1700000015.0,1700000016.0,140.0,1700302400.0);
INSERT INTO "lpi_transfers" VALUES(7,'main','alice','out','a open','4','keyed','sent',X'',NULL,NULL,NULL,1700000017.0,1700000017.0,160.0,1700302400.0);
INSERT INTO "lpi_transfers" VALUES(8,'main','alice','in','a waits','18446744073709551615','keyed','applied',X'646967657374206F662061207761697473',NULL,NULL,NULL,1700000018.0,1700000018.0,180.0,NULL);
INSERT INTO "lpi_transfers" VALUES(9,'main','alice','in','a accepted','5','keyed','delivered',X'646967657374206F662061206163636570746564',NULL,NULL,NULL,1700000019.0,1700000019.0,190.0,NULL);
INSERT INTO "lpi_transfers" VALUES(10,'main','alice','in','a refused by the handler','6','keyed','refused',X'646967657374206F6620612072656675736564206279207468652068616E646C6572','F00','NotAcceptedError',X'7B226D657373616765223A20226E6F7420746F646179227D',1700000020.0,1700000020.0,200.0,NULL);
INSERT INTO "lpi_transfers" VALUES(11,'main','bob','out','b paid','10','plain','acked',X'',NULL,NULL,NULL,1700000021.0,1700000022.0,220.0,NULL);
INSERT INTO "lpi_transfers" VALUES(12,'main','bob','out','b refused','20','plain','rejected',X'','F00','NotAcceptedError',X'7B226D657373616765223A226E6F227D',1700000024.0,1700000025.0,240.0,NULL);
INSERT INTO "lpi_transfers" VALUES(13,'main','bob','out','b confirmed','30','plain','acked',X'',NULL,NULL,NULL,1700000027.0,1700000029.0,270.0,NULL);
INSERT INTO "lpi_transfers" VALUES(14,'main','bob','out','b rejected','40','plain','rejected',X'',NULL,NULL,NULL,1700000030.0,1700000032.0,300.0,NULL);
INSERT INTO "lpi_transfers" VALUES(15,'main','bob','out','b doubt','50','plain','in_doubt',X'',NULL,NULL,NULL,1700000033.0,1700000034.0,320.0,NULL);
INSERT INTO "lpi_transfers" VALUES(16,'main','bob','out','b open','60','plain','sent',X'',NULL,NULL,NULL,1700000035.0,1700000035.0,340.0,NULL);
INSERT INTO "lpi_transfers" VALUES(17,'main','bob','in','0f4b1a3e-6f0a-4c53-9f0e-0f5a6b2b8d01','70','plain','delivered',X'',NULL,NULL,NULL,1700000036.0,1700000037.0,360.0,NULL);
INSERT INTO "lpi_transfers" VALUES(18,'main','bob','in','0f4b1a3e-6f0a-4c53-9f0e-0f5a6b2b8d02','80','plain','applied',X'',NULL,NULL,NULL,1700000038.0,1700000038.0,380.0,NULL);
INSERT INTO "lpi_transfers" VALUES(19,'main','bob','in','0f4b1a3e-6f0a-4c53-9f0e-0f5a6b2b8d03','90','plain','delivered',X'',NULL,NULL,NULL,1700000039.0,1700000039.0,390.0,NULL);
INSERT INTO "lpi_transfers" VALUES(20,'main','carol','out','c open','100','keyed','sent',X'',NULL,NULL,NULL,1700000040.0,1700000040.0,400.0,1700302400.0);
INSERT INTO "lpi_transfers" VALUES(21,'main','dave','out','d open','200','plain','sent',X'',NULL,NULL,NULL,1700000041.0,1700000041.0,410.0,NULL);
INSERT INTO "lpi_transfers" VALUES(22,'main','alice','in','a waits as well','7','keyed','applied',X'646967657374206F6620612077616974732061732077656C6C',NULL,NULL,NULL,1700000042.0,1700000042.0,420.0,NULL);
INSERT INTO "lpi_transfers" VALUES(23,'wallet','','out','w paid','1000','keyed','acked',X'',NULL,NULL,NULL,1700000044.0,1700000045.0,20.0,1700302400.0);
INSERT INTO "lpi_transfers" VALUES(24,'wallet','','out','w refused','2000','keyed','rejected',X'','F00','NotAcceptedError',X'7B226D657373616765223A226E6F227D',1700000047.0,1700000048.0,40.0,1700302400.0);
INSERT INTO "lpi_transfers" VALUES(25,'wallet','','out','w confirmed','3000','keyed','acked',X'',NULL,NULL,NULL,1700000050.0,1700000052.0,70.0,1700302400.0);
INSERT INTO "lpi_transfers" VALUES(26,'wallet','','out','w rejected','4000','keyed','rejected',X'',NULL,NULL,NULL,1700000053.0,1700000055.0,100.0,1700302400.0);
INSERT INTO "lpi_transfers" VALUES(27,'wallet','','out','w doubt','5000','keyed','in_doubt',X'',NULL,NULL,NULL,1700000056.0,1700000057.0,120.0,1700302400.0);
INSERT INTO "lpi_transfers" VALUES(28,'wallet','','out','w open','6000','keyed','sent',X'',NULL,NULL,NULL,1700000058.0,1700000058.0,140.0,1700302400.0);
INSERT INTO "lpi_transfers" VALUES(29,'wallet','','in','w waits','7000','keyed','applied',X'646967657374206F662077207761697473',NULL,NULL,NULL,1700000059.0,1700000059.0,160.0,NULL);
CREATE TABLE lpi_values (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "lpi_values" VALUES('alice:hashed-token','HmkjHgWYsuW7H8tcpYtEwoAYEQr8P_UvI077686h5FY');
CREATE INDEX lpi_unfinished ON lpi_transfers (ledger, state, account)
            WHERE state IN ('sent', 'in_doubt', 'applied');
COMMIT;
